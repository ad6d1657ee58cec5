//! Keys, and the certificates that are published for them: an agent's in its [`Identity`], a user's in `clients/`.
//!
//! Nobody vouches for anybody: each certificate is signed by its own key, and whoever meets it compares the whole
//! of it with the published one ([`tpi_proto::cert`]). Only the certificate ever leaves the computer.
//!
//! [`Identity`]: crate::record::Identity

use std::{fmt, time::Duration};

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};

/// A key or a certificate cannot be made, or a text is no key.
#[derive(Debug, thiserror::Error)]
#[error("making a key and certificate")]
pub struct KeyError(#[from] rcgen::Error);

/// Whom a certificate is for; decides the side of a connection it may be used on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    /// An agent: the server.
    Agent {
        /// Its DNS name; never an address, for addresses change hands.
        name: &'a str,
    },
    /// A user: a client, which has no name.
    User,
}

/// A certificate, in both of its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What is compared.
    pub der: Vec<u8>,
    /// What is published.
    pub pem: String,
}

/// A private key. `Debug` does not show it.
pub struct PrivateKey(KeyPair);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads [`PrivateKey::to_pem`].
    ///
    /// # Errors
    /// When the text is no key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Ok(Self(KeyPair::from_pem(pem)?))
    }

    /// As text, for a file that only its owner may read.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// In the DER form of PKCS #8, as TLS wants it.
    #[must_use]
    pub fn to_pkcs8(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// A certificate of this key, signed by itself, valid from one second to another (both included).
    ///
    /// # Errors
    /// When the holder's name is no DNS name.
    pub fn certify(
        &self,
        holder: Holder<'_>,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Certificate, KeyError> {
        let (names, subject, usage) = match holder {
            Holder::Agent { name } => {
                (vec![name.to_owned()], "tpi-agent", ExtendedKeyUsagePurpose::ServerAuth)
            }
            Holder::User => (Vec::new(), "tpi-controller", ExtendedKeyUsagePurpose::ClientAuth),
        };
        let at = |time: Timestamp| {
            let seconds = u64::try_from(time.as_second()).unwrap_or_default();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.not_before = at(from);
        params.not_after = at(until);
        let certificate = params.self_signed(&self.0)?;
        Ok(Certificate { der: certificate.der().to_vec(), pem: certificate.pem() })
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use tpi_proto::cert::PinnedCert;

    use super::*;

    #[test]
    fn a_certificate_says_who_and_how_long() {
        let key = PrivateKey::generate().expect("a key");
        let now = Timestamp::now();
        let hours = SignedDuration::from_hours;
        let agent = key.certify(Holder::Agent { name: "run.example" }, now - hours(1), now + hours(2));
        let agent = agent.expect("a certificate");
        let read = PinnedCert::from_pem(agent.pem.as_bytes()).expect("reads");
        assert_eq!(read.der(), agent.der);
        assert!(read.is_for("run.example"));
        assert_eq!(read.not_after().as_second(), (now + hours(2)).as_second());
        assert_eq!(read.check_validity(now), Ok(()));
        assert!(read.check_validity(now - hours(2)).is_err() && read.check_validity(now + hours(3)).is_err());

        let user = key.certify(Holder::User, now, now + hours(1)).expect("a certificate");
        assert!(!PinnedCert::from_der(user.der).expect("reads").is_for("run.example"));
    }

    #[test]
    fn a_key_is_read_back_and_never_shown() {
        let key = PrivateKey::generate().expect("a key");
        let again = PrivateKey::from_pem(&key.to_pem()).expect("reads");
        assert_eq!(again.to_pkcs8(), key.to_pkcs8());
        assert!(PrivateKey::from_pem("nonsense").is_err());
        assert_eq!(format!("{key:?}"), "PrivateKey { .. }");
    }
}
