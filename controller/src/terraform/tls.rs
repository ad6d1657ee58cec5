//! TLS with Terraform: it has told us its certificate, and nobody else is let in.
//!
//! Terraform makes a key on the curve P-521 for every run. Its certificate is compared byte for byte, and that the other
//! side holds the key is proved by the signature of the handshake. The library that does TLS's cryptography everywhere
//! else cannot verify that curve; `p521` does it here, and nowhere else.

use std::{fmt, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use p521::ecdsa::{DerSignature, Signature, VerifyingKey, signature::Verifier as _};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, PeerIncompatible,
    ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tpi_proto::cert::PinnedCert;
use tpi_store::identity::{Holder, PrivateKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::handshake::HandshakeError;

/// Name that Terraform expects.
const NAME: &str = "localhost";
/// Longest time for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// An authenticated connection.
pub(super) type Connection = TlsStream<UnixStream>;

/// Our side: a key for this run of the program, and the acceptor that knows Terraform's certificate.
pub(super) struct Gate {
    acceptor: TlsAcceptor,
    /// Our certificate, in DER form.
    pub(super) certificate: Vec<u8>,
}

impl Gate {
    /// Makes the key.
    pub(super) fn new(client: PinnedCert) -> Result<Self, HandshakeError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| HandshakeError::Tls(error);
        let key = PrivateKey::generate().map_err(|e| failed(e.into()))?;
        let now = Timestamp::now();
        let certificate = key
            .certify(
                Holder::Agent { name: NAME },
                now - SignedDuration::from_hours(1),
                now + SignedDuration::from_hours(24 * 31),
            )
            .map_err(|e| failed(e.into()))?
            .der;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Exactly { client, provider: provider.clone() };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| failed(e.into()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(
                vec![CertificateDer::from(certificate.clone())],
                PrivatePkcs8KeyDer::from(key.to_pkcs8()).into(),
            )
            .map_err(|e| failed(e.into()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Every connection is checked in full.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate })
    }

    /// Hands authenticated connections on until `end`; one that fails or dawdles holds up no other.
    pub(super) async fn run(
        self,
        listener: UnixListener,
        out: mpsc::Sender<Connection>,
        end: CancellationToken,
    ) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                Some(ended) = handshakes.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a handshake broke");
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (acceptor, out) = (self.acceptor.clone(), out.clone());
                        handshakes.spawn(async move {
                            match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                                // Nobody listens any more when it cannot be sent.
                                Ok(Ok(connection)) => drop(out.send(connection).await),
                                Ok(Err(error)) => tracing::warn!(%error, "a connection was refused"),
                                Err(_) => tracing::warn!("a connection did not get through its handshake"),
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
        handshakes.shutdown().await;
    }
}

/// Accepts one certificate, byte for byte.
struct Exactly {
    client: PinnedCert,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Exactly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exactly").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Exactly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        if end_entity.as_ref() == self.client.der() {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if dss.scheme == SignatureScheme::ECDSA_NISTP521_SHA512 {
            return verify_p521(message, cert, dss.signature());
        }
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.provider.signature_verification_algorithms.supported_schemes();
        schemes.push(SignatureScheme::ECDSA_NISTP521_SHA512);
        schemes
    }
}

/// The certificate has been found to be the right one before; this is the proof that the other side has its key.
fn verify_p521(message: &[u8], cert: &[u8], signature: &[u8]) -> Result<HandshakeSignatureValid, TlsError> {
    let bad_key = || TlsError::InvalidCertificate(CertificateError::BadEncoding);
    let bad_signature = || TlsError::InvalidCertificate(CertificateError::BadSignature);
    let (_, cert) = X509Certificate::from_der(cert).map_err(|_| bad_key())?;
    // The point is checked to be on this very curve, so another curve's key is refused here.
    let key =
        VerifyingKey::from_sec1_bytes(&cert.public_key().subject_public_key.data).map_err(|_| bad_key())?;
    let signature = DerSignature::from_bytes(signature).map_err(|_| bad_signature())?;
    let signature = Signature::try_from(signature).map_err(|_| bad_signature())?;
    key.verify(message, &signature).map_err(|_| bad_signature())?;
    Ok(HandshakeSignatureValid::assertion())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Both are signed by their own keys, which nobody has kept.
    const P521: &[u8] = include_bytes!("tls/p521.pem");
    const P256: &[u8] = include_bytes!("tls/p256.pem");

    fn cert(pem: &[u8]) -> Vec<u8> {
        PinnedCert::from_pem(pem).expect("a certificate").der().to_vec()
    }

    #[test]
    fn a_signature_of_the_curve_is_verified() {
        let der = cert(P521);
        let (_, read) = X509Certificate::from_der(&der).expect("a certificate");
        let (message, signature) = (read.tbs_certificate.as_ref(), read.signature_value.data.as_ref());
        assert!(verify_p521(message, &der, signature).is_ok());
        let mut other = message.to_vec();
        other[10] ^= 1;
        assert!(verify_p521(&other, &der, signature).is_err(), "another message");
        let mut broken = signature.to_vec();
        broken[20] ^= 1;
        assert!(verify_p521(message, &der, &broken).is_err(), "another signature");
        assert!(verify_p521(message, &cert(P256), signature).is_err(), "another curve's key");
        assert!(verify_p521(message, &der, b"").is_err() && verify_p521(message, b"", signature).is_err());
    }

    #[test]
    fn one_certificate_is_accepted() {
        let client = PinnedCert::from_pem(P521).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Exactly { client, provider };
        let verify =
            |pem| verifier.verify_client_cert(&CertificateDer::from(cert(pem)), &[], UnixTime::now());
        assert!(verify(P521).is_ok());
        assert!(verify(P256).is_err());
    }
}
