//! Certificates: whom to trust is exactly what lies in the store, byte for byte.
//!
//! There is no certificate authority to guard and no name that could be forged: each side compares the
//! other's whole certificate with the published ones, and the validity dates are checked as well. The proof
//! that the other side holds the key is TLS 1.3's own and happens where the connection is made.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// SHA-256 of a certificate's DER form, in lower-case hexadecimal: names a client in `clients/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl Fingerprint {
    /// Of a certificate in DER form.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(der)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Not PEM, not DER, not a certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// Its time has not come; the clock of one side may be wrong.
    #[error("certificate is not valid before {0}")]
    NotYetValid(Timestamp),
    /// Its time is over.
    #[error("certificate expired at {0}")]
    Expired(Timestamp),
}

/// A published certificate: its bytes, and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedCert {
    der: Vec<u8>,
    names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl PinnedCert {
    /// Reads one certificate in PEM form.
    ///
    /// # Errors
    /// [`CertError::Malformed`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertError> {
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem).map_err(|e| CertError::Malformed(e.to_string()))?;
        if block.label != "CERTIFICATE" {
            return Err(CertError::Malformed(format!("found {} instead", block.label)));
        }
        Self::from_der(block.contents)
    }

    /// Reads one certificate in DER form.
    ///
    /// # Errors
    /// [`CertError::Malformed`].
    pub fn from_der(der: Vec<u8>) -> Result<Self, CertError> {
        let (names, not_before, not_after) = {
            let (rest, cert) =
                X509Certificate::from_der(&der).map_err(|e| CertError::Malformed(e.to_string()))?;
            if !rest.is_empty() {
                return Err(CertError::Malformed("trailing bytes".to_owned()));
            }
            let at = |seconds: i64| {
                Timestamp::from_second(seconds).map_err(|e| CertError::Malformed(e.to_string()))
            };
            let alternative =
                cert.subject_alternative_name().map_err(|e| CertError::Malformed(e.to_string()))?;
            let names = alternative.map_or_else(Vec::new, |found| dns_names(&found.value.general_names));
            let validity = cert.validity();
            (names, at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?)
        };
        Ok(Self { der, names, not_before, not_after })
    }

    /// The certificate itself.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Names it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    /// Whether it was made for a DNS name. Case does not count; there are no wildcards.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Last moment of its validity.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it may be used at `now`.
    ///
    /// # Errors
    /// [`CertError::NotYetValid`], [`CertError::Expired`].
    pub fn check_validity(&self, now: Timestamp) -> Result<(), CertError> {
        if now < self.not_before {
            return Err(CertError::NotYetValid(self.not_before));
        }
        if now > self.not_after {
            return Err(CertError::Expired(self.not_after));
        }
        Ok(())
    }
}

fn dns_names(names: &[GeneralName<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        if let GeneralName::DNSName(name) = name {
            found.push((*name).to_owned());
        }
    }
    found
}
