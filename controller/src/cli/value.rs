//! Values of flags: text to typed values, refused with a text that says what is accepted.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::spec::duration::{DurationError, seconds};

/// Seconds (`90`), or numbers with units (`1h30m`).
///
/// # Errors
/// A text that says what is accepted, for the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    seconds(text).map(Duration::from_secs).map_err(|error| match error {
        DurationError::Negative | DurationError::NotADuration => {
            "expected seconds (90) or a duration such as 90s, 15m, 24h, 2d, 1h30m".to_owned()
        }
        DurationError::TooLarge => "so long a time cannot be counted".to_owned(),
    })
}

/// A moment: RFC 3339 (`2026-11-23T20:00:00Z`), or how long ago (`10m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Counted back from now.
    Ago(Duration),
    /// As written.
    At(Timestamp),
}

impl Since {
    /// The moment, seen from `now`.
    #[must_use]
    pub fn moment(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => SignedDuration::try_from(ago)
                .ok()
                .and_then(|ago| now.checked_sub(ago).ok())
                .unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }
}

/// Parses [`Since`].
///
/// # Errors
/// A text that says what is accepted.
pub fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    text.parse().map(Since::At).map_err(|_| {
        "expected how long ago (10m, 2h) or a time in RFC 3339 (2026-11-23T20:00:00Z)".to_owned()
    })
}

/// Two ends of a forwarded connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// Port here; 0 lets the system choose.
    pub local: u16,
    /// Host as the machine sees it; absent: the machine itself.
    pub host: Option<String>,
    /// Port there.
    pub port: u16,
}

/// `LOCAL:REMOTE` or `LOCAL:HOST:REMOTE`, or `PORT` for the same on both sides. HOST is an address: an agent is a static
/// program and resolves no names, which is better told here than at the first connection.
///
/// # Errors
/// A text that says what is accepted.
pub fn forwarding(text: &str) -> Result<Forwarding, String> {
    let wrong =
        || "expected LOCAL:REMOTE or LOCAL:HOST:REMOTE (ports from 1 to 65535; LOCAL may be 0)".to_owned();
    let remote = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong);
    let Some((local, rest)) = text.split_once(':') else {
        let port = remote(text)?;
        return Ok(Forwarding { local: port, host: None, port });
    };
    let local = local.parse().map_err(|_| wrong())?;
    match rest.rsplit_once(':') {
        None => Ok(Forwarding { local, host: None, port: remote(rest)? }),
        Some((host, port)) if !host.is_empty() => {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            if host != "localhost" && host.parse::<std::net::IpAddr>().is_err() {
                return Err(format!(
                    "the machine resolves no names but localhost: give the address of {host:?} as an IP"
                ));
            }
            Ok(Forwarding { local, host: Some(host.to_owned()), port: remote(port)? })
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-11-23T20:00:00Z".parse().expect("a time");
        let ago = since("10m").expect("a duration").moment(now);
        assert_eq!(ago.to_string(), "2026-11-23T19:50:00Z");
        let at = since("2026-11-23T21:00:00+02:00").expect("a time").moment(now);
        assert_eq!(at.to_string(), "2026-11-23T19:00:00Z");
        assert_eq!(Since::Ago(Duration::MAX).moment(now), Timestamp::UNIX_EPOCH);
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn forwardings() {
        let of = |local, host: Option<&str>, port| Forwarding { local, host: host.map(Into::into), port };
        assert_eq!(forwarding("6006"), Ok(of(6006, None, 6006)));
        assert_eq!(forwarding("0:6006"), Ok(of(0, None, 6006)));
        assert_eq!(forwarding("8080:10.0.0.5:5432"), Ok(of(8080, Some("10.0.0.5"), 5432)));
        assert_eq!(forwarding("8080:localhost:80"), Ok(of(8080, Some("localhost"), 80)));
        assert!(forwarding("8080:db:5432").is_err_and(|text| text.contains("\"db\" as an IP")));
        assert_eq!(forwarding("8080:[::1]:80"), Ok(of(8080, Some("::1"), 80)));
        for wrong in ["", "x", "1:", ":1", "1::2", "70000:1", "1:0", "0"] {
            assert!(forwarding(wrong).is_err(), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String) {
            drop((duration(&text), since(&text), forwarding(&text)));
        }
    }
}
