//! Tokens of the instance metadata service, version 2.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, Method, StatusCode};

/// Longest life of a token, in seconds.
const LONGEST: u64 = 21_600;

/// Those that were given out.
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<String, Instant>);

/// What a request for a token is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// With one.
    Given {
        /// It.
        token: String,
        /// Seconds for which it is good.
        ttl: u64,
    },
    /// With nothing.
    Refused(StatusCode),
}

impl Tokens {
    /// A request for a token, to the address where there are some.
    pub fn ask(&mut self, method: &Method, headers: &HeaderMap) -> Asked {
        // Whoever forwards requests of others must not be able to forward this one.
        if headers.contains_key("x-forwarded-for") {
            return Asked::Refused(StatusCode::FORBIDDEN);
        }
        let ttl = headers.get("x-aws-ec2-metadata-token-ttl-seconds");
        match ttl.and_then(|ttl| ttl.to_str().ok()?.parse().ok()) {
            Some(ttl @ 1..=LONGEST) if *method == Method::PUT => {
                let token = format!("AQAE{}==", hex::encode(rand::random::<[u8; 20]>()));
                let _none = self.0.insert(token.clone(), Instant::now() + Duration::from_secs(ttl));
                Asked::Given { token, ttl }
            }
            _ => Asked::Refused(StatusCode::BAD_REQUEST),
        }
    }

    /// Whether a request carries one that is still good.
    #[must_use]
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let token = headers.get("x-aws-ec2-metadata-token").and_then(|token| token.to_str().ok());
        token.and_then(|token| self.0.get(token)).is_some_and(|until| Instant::now() <= *until)
    }

    /// All that were given out.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}
