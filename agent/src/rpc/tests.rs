//! Real sockets, real TLS: who gets in, and what the service says.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tpi_proto::{
    agent_v1::agent_client::AgentClient,
    cert::Fingerprint,
    id::{Attempt, MachineId, RunId, SlotIndex, TaskId},
    machine::{Addresses, MACHINE_CONFIG_VERSION, Timings},
    state::{Outcome, Phase},
};
use tpi_store::{
    identity::{Holder, PrivateKey},
    layout::TaskKeys,
    record::Identity,
};

use super::*;
use crate::{
    clock::Clock,
    logs::spool::{Spool, Writer},
    supervisor::{Event, ProcessContext},
    telemetry::Sampler,
};

const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    store: Store,
    handle: Handle,
    status: watch::Sender<Arc<SlotStatus>>,
    spool: Writer,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    address: SocketAddr,
    _context: watch::Sender<Option<Arc<ProcessContext>>>,
    _events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    _root: tempfile::TempDir,
}

fn status(generation: u64, state: SlotState) -> SlotStatus {
    let run = RunId { slot: SlotIndex(0), attempt: Attempt(1) };
    SlotStatus { generation, state, ..SlotStatus::claimed(run, MachineId("m".to_owned()), 1000) }
}

fn quick() -> Limits {
    Limits { reread: Duration::from_millis(50), recheck: Duration::from_millis(100), ..Limits::default() }
}

impl Rig {
    async fn start(limits: Limits) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::memory();
        let task = TaskId::deterministic("rpc").expect("a name");
        let run = RunId { slot: SlotIndex(0), attempt: Attempt(1) };
        let machine = MachineId("m".to_owned());
        let (spool, writer) = Spool::create(&root.path().join("spool")).expect("a spool");
        let clock = Clock::local(SignedDuration::ZERO);
        let (_sampler, telemetry) = Sampler::new(
            store.clone(),
            task.clone(),
            run,
            clock.clone(),
            root.path().to_owned(),
            Duration::from_secs(1),
        );
        let first = status(1, SlotState::Active { phase: Phase::Run });
        let (status, statuses) = watch::channel(Arc::new(first));
        let events = mpsc::channel(4);
        let environment = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let work = ProcessContext { work_dir: root.path().to_owned(), environment };
        let (context, contexts) = watch::channel(Some(Arc::new(work)));
        let handle = Handle {
            task: task.clone(),
            run,
            machine: machine.clone(),
            clock,
            status: statuses,
            events: events.0.downgrade(),
            logs: crate::logs::Reader::new(spool, store.clone(), task.clone(), run),
            telemetry,
            context: contexts,
        };
        let config = MachineConfig {
            version: MACHINE_CONFIG_VERSION,
            task: task.clone(),
            machine,
            slots: 1,
            store: store.url().clone(),
            credentials: tpi_proto::machine::Credentials::Environment,
            deadline: Timestamp::now() + SignedDuration::from_hours(1),
            preemption: Vec::new(),
            release: None,
            power_off: false,
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            addresses: Addresses::Static { hosts: vec!["127.0.0.1".to_owned()] },
            root: root.path().to_owned(),
            timings: Timings::default(),
            environment: BTreeMap::new(),
        };
        let shutdown = CancellationToken::new();
        let server =
            serve_within(handle.clone(), &config, &store, shutdown.clone(), limits).await.expect("serves");
        let key = TaskKeys::new(&task).identity(run);
        let (identity, _) = store.get_json::<Identity>(&key).await.expect("readable").expect("published");
        let address = identity.addresses[0].parse().expect("an address");
        Self {
            store,
            handle,
            status,
            spool: writer,
            shutdown,
            server,
            address,
            _context: context,
            _events: events,
            _root: root,
        }
    }

    fn keys(&self) -> TaskKeys {
        TaskKeys::new(self.handle.task())
    }

    fn name(&self) -> String {
        self.handle.run().server_name(self.handle.task())
    }

    async fn publish(&self, client: &ClientKey) {
        let key = self.keys().client(&client.fingerprint());
        self.store.put(&key, Bytes::from(client.pem.clone())).await.expect("written");
    }

    async fn withdraw(&self, client: &ClientKey) {
        self.store.delete(&self.keys().client(&client.fingerprint())).await.expect("deleted");
    }

    /// What a client gets: the first bytes of the service, or the error that it is refused with.
    async fn knock(&self, client: Option<&ClientKey>) -> Result<Vec<u8>, io::Error> {
        let mut tls = self.shake(client, &self.name(), &[&rustls::version::TLS13]).await?;
        let mut got = vec![0; 64];
        // As a client of HTTP/2 begins; whoever is refused must not be answered.
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let count = tokio::time::timeout(PATIENCE, tls.read(&mut got)).await.expect("an answer")?;
        got.truncate(count);
        Ok(got)
    }

    async fn shake(
        &self,
        client: Option<&ClientKey>,
        name: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<TlsStream<TcpStream>, io::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match client {
            Some(client) => {
                let key = rustls::crypto::ring::sign::any_supported_type(&client.key).expect("a usable key");
                // Does not check that they belong together: thieves would not either.
                let chain = CertifiedKey::new(vec![client.der.clone()], key);
                config.with_client_cert_resolver(Arc::new(Always(Arc::new(chain))))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    async fn client(&self, client: &ClientKey) -> AgentClient<Channel> {
        let tls = self.shake(Some(client), &self.name(), &[&rustls::version::TLS13]).await.expect("let in");
        let endpoint = Endpoint::from_static("http://agent");
        AgentClient::new(endpoint.connect_with_connector(Once(Some(tls))).await.expect("connects"))
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.server).await.expect("ends").expect("no panic");
    }
}

struct ClientKey {
    pem: String,
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl ClientKey {
    fn new() -> Self {
        Self::valid(-24, 24)
    }

    /// Hours from now.
    fn valid(from: i64, until: i64) -> Self {
        let key = PrivateKey::generate().expect("a key");
        let at = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
        let cert = key.certify(Holder::User, at(from), at(until)).expect("a certificate");
        let der = PrivatePkcs8KeyDer::from(key.to_pkcs8());
        Self { pem: cert.pem, der: CertificateDer::from(cert.der), key: PrivateKeyDer::Pkcs8(der) }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

struct Once(Option<TlsStream<TcpStream>>);

impl tonic::codegen::Service<http::Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        std::future::ready(self.0.take().map(TokioIo::new).ok_or(io::ErrorKind::NotConnected.into()))
    }
}

fn hello(versions: &[u32]) -> wire::HelloRequest {
    wire::HelloRequest { versions: versions.to_vec(), client: "test".to_owned() }
}

fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        Some(_) | None => None,
    }
}

#[tokio::test]
async fn only_published_and_valid_certificates_get_in() {
    use rustls::AlertDescription as Alert;
    let rig = Rig::start(quick()).await;
    let (good, foreign, removed) = (ClientKey::new(), ClientKey::new(), ClientKey::new());
    let (expired, early) = (ClientKey::valid(-48, -1), ClientKey::valid(1, 48));
    let stolen = ClientKey { pem: good.pem.clone(), der: good.der.clone(), key: ClientKey::new().key };
    for client in [&good, &removed, &expired, &early] {
        rig.publish(client).await;
    }
    assert!(!rig.knock(Some(&good)).await.expect("let in").is_empty());
    assert!(!rig.knock(Some(&removed)).await.expect("let in").is_empty());
    rig.withdraw(&removed).await;
    // For this long a copy of `clients/` may be used.
    tokio::time::sleep(quick().reread).await;

    let cases = [
        ("no certificate", None, Alert::CertificateRequired),
        ("a foreign certificate", Some(&foreign), Alert::AccessDenied),
        ("an expired certificate", Some(&expired), Alert::CertificateExpired),
        ("a certificate of tomorrow", Some(&early), Alert::CertificateExpired),
        ("a removed certificate", Some(&removed), Alert::AccessDenied),
        // Certificates are public; what counts is the key.
        ("another one's certificate", Some(&stolen), Alert::DecryptError),
    ];
    for (what, client, wanted) in cases {
        // An alert of TLS, and not a byte of the service.
        let error = rig.knock(client).await.expect_err(what);
        assert_eq!(alert(&error), Some(wanted), "{what}: {error}");
    }

    assert!(!rig.knock(Some(&good)).await.expect("let in").is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_certificate_published_later_gets_in_at_once() {
    // With the usual interval: the first to come waits for a reading rather than being refused.
    let rig = Rig::start(Limits { recheck: Duration::from_secs(3600), ..Limits::default() }).await;
    let (first, second) = (ClientKey::new(), ClientKey::new());
    rig.publish(&first).await;
    assert!(!rig.knock(Some(&first)).await.expect("let in").is_empty());
    rig.publish(&second).await;
    assert!(!rig.knock(Some(&second)).await.expect("let in").is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn removing_a_certificate_ends_its_connections() {
    let rig = Rig::start(quick()).await;
    let (stays, goes) = (ClientKey::new(), ClientKey::new());
    rig.publish(&stays).await;
    rig.publish(&goes).await;
    let mut remaining = rig.client(&stays).await;
    remaining.hello(hello(PROTOCOL_VERSIONS)).await.expect("greets");
    let mut client = rig.client(&goes).await;
    client.hello(hello(PROTOCOL_VERSIONS)).await.expect("greets");
    let mut logs = client.logs(wire::LogsRequest { from_offset: 0 }).await.expect("logs").into_inner();
    rig.withdraw(&goes).await;
    let ended = tokio::time::timeout(PATIENCE, logs.message()).await.expect("in bounded time");
    assert!(ended.is_err());
    remaining.hello(hello(PROTOCOL_VERSIONS)).await.expect("still welcome");
    drop((client, remaining));
    rig.stop().await;
}

#[tokio::test]
async fn other_names_and_versions_of_tls_are_refused() {
    let rig = Rig::start(quick()).await;
    let client = ClientKey::new();
    rig.publish(&client).await;
    let other = format!("1-1.{}.tpi.internal", rig.handle.task());
    let error = rig.shake(Some(&client), &other, &[&rustls::version::TLS13]).await.expect_err("refused");
    assert_eq!(alert(&error), Some(rustls::AlertDescription::AccessDenied), "{error}");
    let error = rig.shake(Some(&client), &rig.name(), &[&rustls::version::TLS12]).await.expect_err("refused");
    assert_eq!(alert(&error), Some(rustls::AlertDescription::ProtocolVersion), "{error}");
    rig.stop().await;
}

#[tokio::test]
async fn silent_strangers_do_not_keep_clients_out() {
    let limits =
        Limits { handshake: Duration::from_millis(500), handshakes: 8, handshakes_per_address: 4, ..quick() };
    let rig = Rig::start(limits).await;
    let client = ClientKey::new();
    rig.publish(&client).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(rig.address).await.expect("connects"));
    }
    let got_in = async {
        loop {
            // Turned away at once while there are too many; the silent ones are dropped after their time.
            if rig.knock(Some(&client)).await.is_ok_and(|got| !got.is_empty()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, got_in).await.expect("gets in");
    drop(silent);
    rig.stop().await;
}

#[tokio::test]
async fn hello_comes_first_and_agrees_on_a_version() {
    let rig = Rig::start(quick()).await;
    let key = ClientKey::new();
    rig.publish(&key).await;
    let mut client = rig.client(&key).await;
    let status = client.logs(wire::LogsRequest { from_offset: 0 }).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let status = client.hello(hello(&[7, 8])).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.metadata().get(VERSIONS).and_then(|v| v.to_str().ok()), Some("1"));
    // Still not greeted.
    let status = client.watch(wire::WatchRequest { after_generation: 0 }).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let answer = client.hello(hello(&[8, 1])).await.expect("agreed").into_inner();
    assert_eq!((answer.version, answer.slot, answer.attempt), (1, 0, 1));
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn watch_skips_what_is_known_and_ends_after_the_last() {
    let rig = Rig::start(quick()).await;
    let key = ClientKey::new();
    rig.publish(&key).await;
    let mut client = rig.client(&key).await;
    client.hello(hello(PROTOCOL_VERSIONS)).await.expect("greets");
    let mut all =
        client.watch(wire::WatchRequest { after_generation: 0 }).await.expect("watches").into_inner();
    let mut newer =
        client.watch(wire::WatchRequest { after_generation: 1 }).await.expect("watches").into_inner();
    let first = all.message().await.expect("alive").expect("a status");
    assert_eq!((first.generation, first.last), (1, false));
    let end = SlotState::Finished { outcome: Outcome::Exited { code: 0 }, at: Timestamp::now() };
    rig.status.send_replace(Arc::new(status(5, end)));
    for stream in [&mut all, &mut newer] {
        let last = stream.message().await.expect("alive").expect("a status");
        assert_eq!((last.generation, last.last), (5, true));
        let status: SlotStatus = serde_json::from_slice(&last.status_json).expect("a status");
        assert!(status.state.is_final());
        assert!(stream.message().await.expect("ends well").is_none());
    }
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn the_log_flows_from_any_byte_to_its_end() {
    let mut rig = Rig::start(quick()).await;
    let key = ClientKey::new();
    rig.publish(&key).await;
    let mut client = rig.client(&key).await;
    client.hello(hello(PROTOCOL_VERSIONS)).await.expect("greets");
    let append = |spool: &mut Writer, text: &'static str| {
        spool.append(1, LogStream::Stdout, Bytes::from_static(text.as_bytes())).expect("written");
    };
    append(&mut rig.spool, "hello ");
    let mut logs = client.logs(wire::LogsRequest { from_offset: 2 }).await.expect("logs").into_inner();
    let mut got = Vec::new();
    // Flushed though nothing follows.
    let first = logs.message().await.expect("alive").expect("records");
    got.extend(first.records.iter().flat_map(|r| r.data.to_vec()));
    assert_eq!(first.records[0].offset, 2);
    append(&mut rig.spool, "world");
    let (spool, rest) = (rig.spool, async {
        let mut complete = None;
        while let Some(message) = logs.message().await.expect("alive") {
            got.extend(message.records.iter().flat_map(|r| r.data.to_vec()));
            complete = message.complete_at;
        }
        complete
    });
    spool.complete();
    assert_eq!(rest.await, Some(11));
    assert_eq!(got, b"llo world");
    drop(client);
    rig.shutdown.cancel();
    tokio::time::timeout(PATIENCE, rig.server).await.expect("ends").expect("no panic");
}
