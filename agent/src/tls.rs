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

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, mpsc as blocking},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
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
use tpi_proto::cert::{CertError, Fingerprint, PinnedCert};
use tpi_store::{Store, layout::TaskKeys};

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

/// A client's certificate is at most this large; larger objects in `clients/` are skipped.
const CERTIFICATE_MAX: u64 = 16 * 1024;

// === clients ===

/// One client that may connect.
#[derive(Debug, Clone)]
struct Client {
    cert: Arc<PinnedCert>,
    /// Cancelled when the client may no longer be connected.
    revoked: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    clients: HashMap<Fingerprint, Client>,
    /// When the reading began that gave `clients`.
    read: Option<Instant>,
}

/// Asks for a reading of `clients/` that began after the question, as far as the rate limit allows.
type Question = blocking::SyncSender<()>;

/// The certificates in `clients/`, and when they were read. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    known: Shared,
    questions: mpsc::Sender<Question>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Known>>);

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, fingerprint: &Fingerprint) -> Option<Client> {
        self.lock().clients.get(fingerprint).cloned()
    }
}

impl Clients {
    /// Blocks its thread until `clients/` was read again, or `patience` is over.
    fn refresh(&self, patience: Duration) {
        let (done, answer) = blocking::sync_channel(1);
        if self.questions.try_send(done).is_ok() {
            // Not answered in time or never: the caller decides by what is known.
            let (Ok(()) | Err(_)) = answer.recv_timeout(patience);
        }
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.known.lock().read.is_none_or(|read| read.elapsed() > age)
    }
}

/// Keeps [`Clients`] up to date: on demand, and regularly while somebody is connected.
struct Reader {
    store: Store,
    keys: TaskKeys,
    handle: Handle,
    limits: Limits,
    known: Shared,
    /// Cancelled when nobody at all may stay connected.
    everybody: CancellationToken,
    questions: mpsc::Receiver<Question>,
}

impl Reader {
    async fn run(mut self) {
        let mut recheck = tokio::time::interval(self.limits.recheck);
        recheck.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut waiting: Vec<Question> = Vec::new();
        loop {
            tokio::select! {
                question = self.questions.recv() => match question {
                    Some(question) => waiting.push(question),
                    None => return,
                },
                _ = recheck.tick() => {
                    self.cut_off_expired();
                    // Nobody is connected: the next handshake will read.
                    if !self.anybody_connected() {
                        continue;
                    }
                }
            }
            let last = self.known.lock().read;
            if let Some(next) = last.map(|read| read + self.limits.reread) {
                tokio::time::sleep_until(next.into()).await;
            }
            // Whoever asked up to here gets this reading; it begins now.
            while let Ok(question) = self.questions.try_recv() {
                waiting.push(question);
            }
            let began = Instant::now();
            let mut failed = false;
            match self.read().await {
                Ok(found) => self.replace(found, began),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot read which clients may attach; those known before stay welcome"
                    );
                    failed = true;
                }
            }
            for question in waiting.drain(..) {
                // A handshake that gave up does not listen any more.
                let (Ok(()) | Err(_)) = question.try_send(());
            }
            if failed {
                // The rate limit holds for failures as well.
                tokio::time::sleep(self.limits.reread).await;
            }
        }
    }

    fn anybody_connected(&self) -> bool {
        // The map holds one reference to each certificate, every connection another.
        self.known.lock().clients.values().any(|client| Arc::strong_count(&client.cert) > 1)
    }

    fn cut_off_expired(&self) {
        let now = self.handle.now();
        for client in self.known.lock().clients.values() {
            if client.cert.check_validity(now).is_err() {
                client.revoked.cancel();
            }
        }
    }

    async fn read(&self) -> Result<Vec<PinnedCert>, tpi_store::StoreError> {
        let mut found = Vec::new();
        let mut listed = self.store.list(&self.keys.clients(), None);
        while let Some(info) = listed.next().await {
            let info = info?;
            let name = info.key.rsplit('/').next().unwrap_or_default();
            let Some(name) = name.strip_suffix(".pem") else { continue };
            let fingerprint = Fingerprint(name.to_owned());
            if info.size > CERTIFICATE_MAX || found.len() >= self.limits.clients {
                tracing::warn!(key = info.key, "not looking at this client's certificate");
                continue;
            }
            // Named by its content, so one that is known need not be fetched again.
            if let Some(client) = self.known.find(&fingerprint) {
                found.push(PinnedCert::clone(&client.cert));
                continue;
            }
            let pem = match self.store.get(&info.key).await {
                Ok(pem) => pem,
                Err(error) if error.kind == tpi_store::StoreErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match PinnedCert::from_pem(&pem) {
                Ok(cert) if cert.fingerprint() == fingerprint => found.push(cert),
                Ok(_) => tracing::warn!(key = info.key, "a client's certificate under another one's name"),
                Err(error) => tracing::warn!(
                    key = info.key,
                    error = &error as &dyn std::error::Error,
                    "not a client's certificate"
                ),
            }
        }
        Ok(found)
    }

    fn replace(&self, found: Vec<PinnedCert>, began: Instant) {
        let mut known = self.known.lock();
        let mut old = std::mem::take(&mut known.clients);
        known.clients = found
            .into_iter()
            .map(|cert| {
                let fingerprint = cert.fingerprint();
                let client =
                    old.remove(&fingerprint).filter(|client| !client.revoked.is_cancelled()).unwrap_or_else(
                        || Client { cert: Arc::new(cert), revoked: self.everybody.child_token() },
                    );
                (fingerprint, client)
            })
            .collect();
        known.read = Some(began);
        drop(known);
        for (fingerprint, client) in old {
            tracing::info!(%fingerprint, "this client may no longer attach");
            client.revoked.cancel();
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
        let known = self.clients.known.find(&fingerprint);
        if known.is_none() || self.clients.is_older_than(self.limits.reread) {
            self.clients.refresh(self.limits.reread + self.limits.handshake / 2);
        }
        let client = self.clients.known.find(&fingerprint).ok_or_else(|| {
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
        let (ask, questions) = mpsc::channel(limits.handshakes.max(1));
        let clients = Clients { known: Shared::default(), questions: ask };
        let everybody = CancellationToken::new();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            Verifier { clients: clients.clone(), handle: handle.clone(), limits: limits.clone(), provider };
        let config = server_config(handle.run().server_name(handle.task()), pair, verifier)?;
        let reader = Reader {
            store: store.clone(),
            keys: TaskKeys::new(handle.task()),
            handle: handle.clone(),
            limits: limits.clone(),
            known: clients.known.clone(),
            everybody: everybody.clone(),
            questions,
        };
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
        .known
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
