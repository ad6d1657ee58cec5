//! Who may connect: exactly the certificates that lie in the task's `clients/`, byte for byte.
//!
//! The check happens inside the handshake, before the client's last message of it is taken and so before any
//! application byte of either side. A certificate that is not known makes the agent read `clients/` again, in the
//! middle of the handshake and at most once per [`Limits::reread`] whoever asks; only then is it refused, with a
//! TLS alert. Known ones are accepted from a copy that is never older than the same interval (unless the store
//! cannot be reached: an outage of the store must not lock out those who were welcome before it). A removed
//! certificate is refused from then on, and open connections made with it are closed at the next regular reading.
//!
//! rustls asks its verifier synchronously, so the second half of each handshake runs on a thread that may block.
//! Everything that a stranger can make us hold is bounded: handshakes at once, handshakes at once per address, and
//! the time for each.

mod clients;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{
        Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tpi_proto::cert::{CertError, Fingerprint};
use tpi_store::Store;

use self::clients::{Client, Clients, Reader};
use crate::{identity::KeyPair, supervisor::Handle};

/// Bounds of what others can make the agent do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `clients/` is read at most this often on demand.
    pub reread: Duration,
    /// While somebody is connected, `clients/` is read this often, and those who are gone from it are cut off.
    pub recheck: Duration,
    /// Longest handshake.
    pub handshake: Duration,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Handshakes at once from one address.
    pub handshakes_per_address: usize,
    /// Certificates that are looked at in `clients/`.
    pub clients: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reread: Duration::from_secs(2),
            recheck: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            handshakes: 64,
            handshakes_per_address: 16,
            clients: 1024,
        }
    }
}

// === the handshake ===

/// Accepts exactly the published certificates. Blocks: used on threads that may.
struct Verifier {
    clients: Clients,
    handle: Handle,
    limits: Limits,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let fingerprint = Fingerprint::of(end_entity);
        let known = self.clients.find(&fingerprint);
        if known.is_none() || self.clients.is_older_than(self.limits.reread) {
            self.clients.refresh(self.limits.reread + self.limits.handshake / 2);
        }
        let client = self.clients.find(&fingerprint).ok_or_else(|| {
            tracing::warn!(%fingerprint, "refusing a client whose certificate is not published");
            TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        if client.cert.der() != end_entity.as_ref() {
            return Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        // By the store's clock: the machine's own may be off by hours.
        client.cert.check_validity(self.handle.now()).map_err(|error| {
            tracing::warn!(%fingerprint, %error, "refusing a client");
            TlsError::InvalidCertificate(match error {
                CertError::Expired(_) => CertificateError::Expired,
                CertError::NotYetValid(_) => CertificateError::NotValidYet,
                CertError::Malformed(_) => CertificateError::BadEncoding,
            })
        })?;
        Ok(ClientCertVerified::assertion())
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

/// Answers only to its own name, so that whoever looks for another run is not served by this one.
#[derive(Debug)]
struct OwnName {
    name: String,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for OwnName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello
            .server_name()
            .is_some_and(|name| name.eq_ignore_ascii_case(&self.name))
            .then(|| self.key.clone())
    }
}

fn server_config(name: String, pair: &KeyPair, verifier: Verifier) -> Result<ServerConfig, TlsError> {
    let provider = verifier.provider.clone();
    let key = CertifiedKey::from_der(vec![pair.certificate.clone()], pair.key.clone_key(), &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(OwnName { name, key: Arc::new(key) }));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not be verified again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

// === connections ===

/// An authenticated connection. Fails as soon as its client may no longer attach.
#[derive(Debug)]
pub(crate) struct ClientStream {
    tls: TlsStream<TcpStream>,
    peer: SocketAddr,
    client: Client,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl ClientStream {
    /// From where.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// By whom.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.client.cert.fingerprint()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A reader always waits on a connection of HTTP/2, so looking here is enough.
        if self.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "this client may no longer attach",
            )));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Takes connections and hands on those that are authenticated.
pub(crate) struct Gate {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    clients: Clients,
    reader: Reader,
    limits: Limits,
    everybody: CancellationToken,
}

impl Gate {
    /// For one run.
    ///
    /// # Errors
    /// The key is not usable.
    pub(crate) fn new(
        listener: TcpListener,
        pair: &KeyPair,
        handle: &Handle,
        store: &Store,
        limits: Limits,
    ) -> Result<Self, TlsError> {
        let everybody = CancellationToken::new();
        let (clients, reader) = Clients::new(store, handle, &limits, everybody.clone());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            Verifier { clients: clients.clone(), handle: handle.clone(), limits: limits.clone(), provider };
        let config = server_config(handle.run().server_name(handle.task()), pair, verifier)?;
        Ok(Self { listener, config: Arc::new(config), clients, reader, limits, everybody })
    }

    /// Cancelling it closes every connection at once.
    pub(crate) fn everybody(&self) -> CancellationToken {
        self.everybody.clone()
    }

    /// Until `shutdown`, or until nobody takes connections any more.
    pub(crate) async fn run(self, accepted: mpsc::Sender<ClientStream>, shutdown: CancellationToken) {
        let Self { listener, config, clients, reader, limits, everybody: _ } = self;
        let mut tasks = JoinSet::new();
        let mut reading = JoinSet::new();
        reading.spawn(reader.run());
        let slots = Arc::new(Semaphore::new(limits.handshakes));
        let per_address = PerAddress::default();
        loop {
            // Strangers wait in the kernel's queue while too many shake hands.
            let slot = tokio::select! {
                () = shutdown.cancelled() => break,
                () = accepted.closed() => break,
                slot = slots.clone().acquire_owned() => slot,
            };
            let Ok(slot) = slot else { break };
            let (tcp, peer) = tokio::select! {
                () = shutdown.cancelled() => break,
                () = accepted.closed() => break,
                Some(_) = tasks.join_next() => continue,
                taken = listener.accept() => match taken {
                    Ok(taken) => taken,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        // Out of descriptors, most likely: give others time to close some.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                }
            };
            let Some(quota) = per_address.take(peer.ip(), limits.handshakes_per_address) else {
                tracing::debug!(%peer, "too many handshakes at once from one address");
                continue;
            };
            let handshake = shake_hands(tcp, peer, config.clone(), clients.clone(), limits.handshake);
            let accepted = accepted.clone();
            tasks.spawn(async move {
                let done = handshake.await;
                drop::<(OwnedSemaphorePermit, Quota)>((slot, quota));
                match done {
                    // The server may have gone in between.
                    Ok(stream) => {
                        let (Ok(()) | Err(_)) = accepted.send(stream).await;
                    }
                    Err(error) => tracing::debug!(%peer, %error, "a handshake failed"),
                }
            });
        }
        tasks.shutdown().await;
        reading.shutdown().await;
    }
}

async fn shake_hands(
    tcp: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    clients: Clients,
    limit: Duration,
) -> io::Result<ClientStream> {
    let deadline = tokio::time::Instant::now() + limit;
    tcp.set_nodelay(true)?;
    // Whoever only connects and says nothing costs no thread.
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the handshake takes too long");
    let hello = tokio::time::timeout_at(deadline, LazyConfigAcceptor::new(Acceptor::default(), tcp))
        .await
        .map_err(|_| late())??;
    let runtime = tokio::runtime::Handle::current();
    // On a thread that may block: the verifier waits for the store there. It ends by itself at the deadline.
    let tls = tokio::task::spawn_blocking(move || {
        runtime.block_on(async move { tokio::time::timeout_at(deadline, hello.into_stream(config)).await })
    })
    .await
    .map_err(io::Error::other)?
    .map_err(|_| late())??;
    let fingerprint = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|cert| Fingerprint::of(cert))
        .ok_or_else(|| io::Error::other("no certificate after a handshake that demands one"))?;
    // Removed between the check and here: refused all the same.
    let client = clients
        .find(&fingerprint)
        .ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "this client may no longer attach"))?;
    let revoked = Box::pin(client.revoked.clone().cancelled_owned());
    Ok(ClientStream { tls, peer, client, revoked })
}

/// Counts handshakes per address.
#[derive(Debug, Clone, Default)]
struct PerAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl PerAddress {
    fn take(&self, address: IpAddr, limit: usize) -> Option<Quota> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Quota { counts: self.clone(), address })
    }
}

/// Gives its place back when dropped.
#[derive(Debug)]
struct Quota {
    counts: PerAddress,
    address: IpAddr,
}

impl Drop for Quota {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
