//! TLS to an agent: exactly the certificate that it published, for exactly the run that we want.

use std::{fmt, io, sync::Arc};

use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tpi_proto::cert::PinnedCert;

use super::identity::UserIdentity;

/// Why there is no TLS connection to an address that answered.
#[derive(Debug)]
pub(super) enum TlsFailure {
    /// The other side does not accept our certificate.
    Refused(String),
    /// The other side is not the one that we want.
    WrongCertificate(String),
    /// Anything else: no TLS there, broken off, another version.
    Broken(io::Error),
}

/// An accepted connection: the agent has sent its first byte, which it does not before it has accepted us.
pub(super) type Accepted = BufReader<TlsStream<TcpStream>>;

/// Shakes hands and waits until the agent has accepted us.
pub(super) async fn handshake(
    tcp: TcpStream,
    name: &str,
    pinned: PinnedCert,
    identity: &UserIdentity,
) -> Result<Accepted, TlsFailure> {
    pinned
        .check_validity(Timestamp::now())
        .map_err(|error| TlsFailure::WrongCertificate(error.to_string()))?;
    if !pinned.is_for(name) {
        return Err(TlsFailure::WrongCertificate(format!(
            "the published certificate is not made for {name}"
        )));
    }
    let server = ServerName::try_from(name.to_owned())
        .map_err(|error| TlsFailure::WrongCertificate(format!("{name}: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Exactly { pinned, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| TlsFailure::Broken(io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Always(identity.certified_key())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Every connection is checked in full.
    config.resumption = Resumption::disabled();
    let tls = TlsConnector::from(Arc::new(config)).connect(server, tcp).await.map_err(classify)?;
    // In TLS 1.3 a client is done before the server has looked at its certificate. HTTP/2 servers speak first, so
    // either their greeting comes now or the alert that refuses us.
    let mut tls = BufReader::with_capacity(16 * 1024, tls);
    match tls.fill_buf().await {
        Ok([]) => Err(TlsFailure::Broken(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(tls),
        Err(error) => Err(classify(error)),
    }
}

fn classify(error: io::Error) -> TlsFailure {
    use rustls::AlertDescription as Alert;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(TlsError::AlertReceived(
            alert @ (Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::DecryptError),
        )) => TlsFailure::Refused(if *alert == Alert::CertificateExpired {
            "it has expired, or is not valid yet by the agent's clock".to_owned()
        } else {
            format!("{alert:?}")
        }),
        Some(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            TlsFailure::WrongCertificate("its certificate is another than the published one".to_owned())
        }
        Some(TlsError::InvalidCertificate(other)) => TlsFailure::WrongCertificate(other.to_string()),
        _ => TlsFailure::Broken(error),
    }
}

/// Sends our certificate whatever the agent hints at: it accepts whole certificates, not issuers.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts one certificate, byte for byte.
struct Exactly {
    pinned: PinnedCert,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Exactly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exactly").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        // Name and dates of the pinned one were checked before anything was dialled.
        if end_entity.as_ref() == self.pinned.der() {
            Ok(ServerCertVerified::assertion())
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
        Err(TlsError::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
