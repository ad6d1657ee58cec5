//! Who asks: signatures, and credentials of roles.

use jiff::Timestamp;

use super::{ACCOUNT, call::Scope, http::Request, model::RoleCredentials, refusal::Refusal};
use crate::instance::sigv4::{self, Credential};

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Principal {
    /// The user.
    Laptop,
    /// A session of a role.
    Role { role: String, session: String },
}

impl Principal {
    /// `user/laptop`, `role/NAME`
    pub(super) fn name(&self) -> String {
        match self {
            Self::Laptop => "user/laptop".to_owned(),
            Self::Role { role, .. } => format!("role/{role}"),
        }
    }

    pub(super) fn arn(&self) -> String {
        match self {
            Self::Laptop => format!("arn:aws:iam::{ACCOUNT}:user/laptop"),
            Self::Role { role, session } => format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"),
        }
    }
}

/// Everything that was given out.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    laptop: (String, String),
    roles: Vec<RoleCredentials>,
}

/// What a signature came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Expired,
    /// A presigned request whose own time is over.
    RequestExpired,
    Unknown,
    Mismatch,
    Missing,
    Skewed,
}

impl Keys {
    pub(super) fn new(laptop: (String, String)) -> Self {
        Self { laptop, roles: Vec::new() }
    }

    /// New ones.
    pub(super) fn issue(&mut self, role: &str, expires: Timestamp) -> RoleCredentials {
        let random = || hex::encode_upper(rand::random::<[u8; 8]>());
        let credentials = RoleCredentials {
            role: role.to_owned(),
            access_key: format!("ASIA{}", random()),
            // All that such a secret may consist of.
            secret_key: format!("a+/{}{}/+z", random(), random()),
            token: format!("IQoJb3JpZ2luX2Vj/{}+{}{}==", random(), random(), random()),
            expires,
        };
        self.roles.push(credentials.clone());
        credentials
    }

    /// Whose key it is, not looking at the signature.
    pub(super) fn holder(&self, key: &str) -> Option<Principal> {
        if key == self.laptop.0 {
            return Some(Principal::Laptop);
        }
        let found = self.roles.iter().find(|c| c.access_key == key)?;
        Some(Principal::Role { role: found.role.clone(), session: format!("i-{}", key.to_lowercase()) })
    }

    fn known(&self) -> Vec<Credential> {
        let laptop = Credential {
            key: self.laptop.0.clone(),
            secret: self.laptop.1.clone(),
            token: String::new(),
            expires: Timestamp::MAX,
        };
        let role = |c: &RoleCredentials| Credential {
            key: c.access_key.clone(),
            secret: c.secret_key.clone(),
            token: c.token.clone(),
            // Judged below, by another clock.
            expires: Timestamp::MAX,
        };
        std::iter::once(laptop).chain(self.roles.iter().map(role)).collect()
    }

    /// Whether the request is signed by who it says; `now` is the front's clock.
    pub(super) fn check(
        &self,
        request: &Request,
        scope: Option<&Scope>,
        now: Timestamp,
    ) -> Result<Principal, Refusal> {
        let service = scope.map_or("s3", |s| s.service.as_str());
        let told = |fault, words: &str| Err(refusal(service, fault, words));
        let Some(scope) = scope else { return told(Fault::Missing, "the request is not signed") };
        let Some(holder) = self.holder(&scope.key) else {
            return told(Fault::Unknown, "the key is not known");
        };
        let signed = sigv4::Request {
            method: request.method.as_str(),
            path: &request.path,
            query: &request.query,
            headers: &request.headers,
            body: &request.body,
        };
        let place = (scope.region.as_str(), service);
        // Signatures are dated by real clocks, whatever the front's says.
        let real = Timestamp::now();
        let checked = if scope.presigned {
            sigv4::check_presigned(&signed, &self.known(), place, now)
        } else {
            sigv4::check(&signed, &self.known(), place, real)
        };
        match checked {
            Ok(_) => {}
            Err(sigv4::Refusal::Expired) => return told(Fault::RequestExpired, "Request has expired"),
            Err(sigv4::Refusal::Wrong(words)) if words == "the time is off" => {
                return told(Fault::Skewed, &words);
            }
            Err(sigv4::Refusal::Wrong(words)) => return told(Fault::Mismatch, &words),
        }
        let expired = self.roles.iter().any(|c| c.access_key == scope.key && c.expires <= now);
        if expired { told(Fault::Expired, "the credentials have expired") } else { Ok(holder) }
    }

    /// All that was given out to roles and must be found nowhere.
    pub(super) fn secrets(&self) -> Vec<String> {
        let of = |c: &RoleCredentials| [c.secret_key.clone(), c.token.clone()];
        self.roles.iter().flat_map(of).chain([self.laptop.1.clone()]).collect()
    }
}

/// In the words of the service.
fn refusal(service: &str, fault: Fault, words: &str) -> Refusal {
    let mismatch = format!(
        "The request signature we calculated does not match the signature you provided. Check your key and signing \
         method. ({words})"
    );
    let (status, code, message) = match (service, fault) {
        ("ec2", Fault::Expired | Fault::RequestExpired) => {
            (400, "RequestExpired", "Request has expired.".to_owned())
        }
        ("s3", Fault::Expired) => (400, "ExpiredToken", "The provided token has expired.".to_owned()),
        ("s3", Fault::RequestExpired) => (403, "AccessDenied", "Request has expired".to_owned()),
        (_, Fault::Expired | Fault::RequestExpired) => {
            (403, "ExpiredToken", "The security token included in the request is expired".to_owned())
        }
        ("ec2", Fault::Unknown | Fault::Mismatch) => {
            let words = "AWS was not able to validate the provided access credentials";
            (401, "AuthFailure", words.to_owned())
        }
        ("s3", Fault::Unknown) => {
            let words = "The AWS Access Key Id you provided does not exist in our records.";
            (403, "InvalidAccessKeyId", words.to_owned())
        }
        (_, Fault::Unknown) => {
            (403, "InvalidClientTokenId", "The security token included in the request is invalid.".to_owned())
        }
        (_, Fault::Mismatch) => (403, "SignatureDoesNotMatch", mismatch),
        ("s3", Fault::Missing) => (403, "AccessDenied", "Access Denied".to_owned()),
        (_, Fault::Missing) => {
            (403, "MissingAuthenticationToken", "Request is missing Authentication Token".to_owned())
        }
        ("s3", Fault::Skewed) => {
            let words = "The difference between the request time and the current time is too large.";
            (403, "RequestTimeTooSkewed", words.to_owned())
        }
        ("ec2", Fault::Skewed) => (400, "RequestExpired", "Request has expired.".to_owned()),
        (_, Fault::Skewed) => (403, "SignatureDoesNotMatch", "Signature expired".to_owned()),
    };
    Refusal::new(status, code, message)
}
