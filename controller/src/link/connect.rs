//! One connection to the agent of one run.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::BoxStream};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tpi_proto::{
    PROTOCOL_VERSIONS,
    agent_v1::{self as wire, agent_client::AgentClient},
    cert::{Fingerprint, PinnedCert},
    id::{RunId, TaskId},
    state::SlotStatus,
};
use tpi_store::{
    Store, StoreError,
    layout::TaskKeys,
    log::{Record, Stream as LogStream},
    record::{Identity, RECORD_VERSION},
    telemetry::{GpuSample, Sample},
};

use super::{
    identity::UserIdentity,
    tls::{self, TlsFailure},
};

/// For each address, until it has answered.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// From there until `Hello` is answered. An agent may wait a few seconds for its store.
const GREETING_TIMEOUT: Duration = Duration::from_secs(12);
/// What an agent may send before it is read: as much as a fast and distant network holds.
const RECEIVE_WINDOW: u32 = 16 * 1024 * 1024;
/// Large frames: fewer of them for a log that flows.
const FRAME: u32 = 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message: a batch of log records with a single huge record in it.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

const KIND: &str = "tpi-kind";
const VERSIONS: &str = "tpi-versions";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No machine has published an identity for this run (not started yet, or it does not listen).
    #[error("the agent of run {run} has not published where it can be reached")]
    NoIdentity {
        /// The run.
        run: RunId,
    },
    /// None of its addresses answered.
    #[error("the agent of run {run} cannot be reached{}", list(tried))]
    Unreachable {
        /// The run.
        run: RunId,
        /// Each address and what happened there.
        tried: Vec<(String, String)>,
    },
    /// The agent does not accept our certificate: it is not (or no longer) among the task's clients, or has expired.
    #[error("the agent at {address} does not accept this computer's certificate {fingerprint}: {cause}")]
    Refused {
        /// Where.
        address: String,
        /// Ours.
        fingerprint: Fingerprint,
        /// What it says.
        cause: String,
    },
    /// Something answered that is not the agent that published the identity.
    #[error("what answers at {address} is not the agent of run {run}: {cause}")]
    WrongCertificate {
        /// The run.
        run: RunId,
        /// Where.
        address: String,
        /// What is wrong.
        cause: String,
    },
    /// No common version of the protocol.
    #[error("the agent speaks protocol versions {theirs:?}, this program {ours:?}")]
    VersionMismatch {
        /// Ours.
        ours: Vec<u32>,
        /// The agent's.
        theirs: Vec<u32>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The published identity is damaged or of a newer version.
    #[error("reading the identity of run {run}: {cause}")]
    Identity {
        /// The run.
        run: RunId,
        /// What is wrong.
        cause: String,
    },
}

fn list(tried: &[(String, String)]) -> String {
    if tried.is_empty() {
        return ": it has no address that is reached from outside".to_owned();
    }
    let each: Vec<_> = tried.iter().map(|(address, cause)| format!("{address}: {cause}")).collect();
    format!(" ({})", each.join("; "))
}

/// Why a shell or a forwarded stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The call: the machine could not do it, or the connection broke.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The local side.
    #[error("{operation}")]
    Local {
        /// What was being done.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Why a call on a connection failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection broke; a new one may work.
    #[error("the connection to the agent broke: {0}")]
    Broken(String),
    /// The agent is on its way out.
    #[error("the agent is ending")]
    Ending,
    /// The agent refuses: what was asked for is wrong or impossible now.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// The agent failed at it.
    #[error("the agent failed: {0}")]
    Failed(String),
}

impl CallError {
    #[expect(clippy::needless_pass_by_value, reason = "used as `map_err(CallError::from_status)`")]
    pub(super) fn from_status(status: Status) -> Self {
        // Only errors that the agent means carry a kind; everything else was made on the way.
        match status.metadata().get(KIND).and_then(|kind| kind.to_str().ok()) {
            Some("ending") => Self::Ending,
            Some("refused") => Self::Refused(status.message().to_owned()),
            Some(_) => Self::Failed(status.message().to_owned()),
            None if status.code() == Code::Unimplemented => Self::Refused(status.message().to_owned()),
            None => Self::Broken(cause_of(&status)),
        }
    }
}

/// The innermost cause: the outer ones only say that something of the transport failed. What TLS says of a machine that
/// is suddenly gone is for developers.
fn cause_of(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let closed =
            error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof);
        if closed {
            return "it was closed without a word".to_owned();
        }
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Part of a live log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// The next records; never empty.
    Records(Vec<Record>),
    /// The log is complete and ends at this offset. The last item.
    Complete(u64),
}

/// An authenticated connection after `Hello`. Cheap to clone; closed when the last clone and its streams are gone.
#[derive(Debug, Clone)]
pub struct Connection {
    client: AgentClient<Channel>,
    about: Arc<About>,
}

#[derive(Debug)]
struct About {
    run: RunId,
    address: String,
    agent: String,
    time: Timestamp,
}

/// Dials the agent of `run`: reads its identity, tries its addresses in order, demands exactly its certificate and
/// name, and says `Hello`. The caller publishes `identity` first. Takes at most some seconds per address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    store: &Store,
    task: &TaskId,
    run: RunId,
    identity: &UserIdentity,
) -> Result<Connection, ConnectError> {
    connect_as(store, task, run, identity, PROTOCOL_VERSIONS).await
}

/// [`connect()`] with other versions of the protocol on offer than this program's, for tests of the negotiation.
///
/// # Errors
/// As [`connect()`].
pub async fn connect_as(
    store: &Store,
    task: &TaskId,
    run: RunId,
    identity: &UserIdentity,
    versions: &[u32],
) -> Result<Connection, ConnectError> {
    let key = TaskKeys::new(task).identity(run);
    let (published, _) = store.get_json::<Identity>(&key).await?.ok_or(ConnectError::NoIdentity { run })?;
    let broken = |cause: String| ConnectError::Identity { run, cause };
    if published.version > RECORD_VERSION {
        return Err(broken(format!("version {} is newer than this program", published.version)));
    }
    if published.run != run {
        return Err(broken(format!("it is that of run {}", published.run)));
    }
    let pinned = PinnedCert::from_pem(published.certificate.as_bytes()).map_err(|e| broken(e.to_string()))?;
    let mut tried = Vec::new();
    let mut wrong = None;
    for address in published.addresses {
        match dial(&address, task, run, pinned.clone(), identity, versions).await {
            Ok(connection) => return Ok(connection),
            Err(Attempt::Next(cause)) => tried.push((address, cause)),
            // Somebody else may have that address by now; the agent may be at the next one.
            Err(Attempt::Wrong(cause)) => {
                tried.push((address.clone(), cause.clone()));
                wrong.get_or_insert(ConnectError::WrongCertificate { run, address, cause });
            }
            Err(Attempt::Final(error)) => return Err(error),
        }
    }
    Err(wrong.unwrap_or(ConnectError::Unreachable { run, tried }))
}

/// Why one address did not give a connection.
enum Attempt {
    /// Nobody there, or nobody who can talk.
    Next(String),
    /// Somebody else.
    Wrong(String),
    /// The agent, and it does not want us.
    Final(ConnectError),
}

async fn dial(
    address: &str,
    task: &TaskId,
    run: RunId,
    pinned: PinnedCert,
    identity: &UserIdentity,
    versions: &[u32],
) -> Result<Connection, Attempt> {
    let late = |_| Attempt::Next("no answer in time".to_owned());
    let tcp = tokio::time::timeout(TCP_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(late)?
        .map_err(|error| Attempt::Next(error.to_string()))?;
    // Not settable is no reason not to talk.
    let (Ok(()) | Err(_)) = tcp.set_nodelay(true);
    let greeting = async {
        let tls = tls::handshake(tcp, &run.server_name(task), pinned, identity).await.map_err(|failure| {
            match failure {
                TlsFailure::Refused(cause) => Attempt::Final(ConnectError::Refused {
                    address: address.to_owned(),
                    fingerprint: identity.fingerprint().clone(),
                    cause,
                }),
                TlsFailure::WrongCertificate(cause) => Attempt::Wrong(cause),
                TlsFailure::Broken(error) => Attempt::Next(error.to_string()),
            }
        })?;
        let channel = channel(tls).await.map_err(|error| Attempt::Next(error.to_string()))?;
        greet(channel, address, task, run, versions).await
    };
    tokio::time::timeout(GREETING_TIMEOUT, greeting).await.map_err(late)?
}

/// HTTP/2 over one stream; there is no second one, so a broken channel stays broken.
async fn channel(tls: tls::Accepted) -> Result<Channel, tonic::transport::Error> {
    let once = Arc::new(Mutex::new(Some(tls)));
    let connector = tower::service_fn(move |_| {
        let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(
            taken.map(TokioIo::new).ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "broken")),
        )
    });
    Endpoint::from_static("http://agent.tpi.internal")
        .initial_stream_window_size(RECEIVE_WINDOW)
        .initial_connection_window_size(2 * RECEIVE_WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

async fn greet(
    channel: Channel,
    address: &str,
    task: &TaskId,
    run: RunId,
    versions: &[u32],
) -> Result<Connection, Attempt> {
    let mut client = AgentClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
    let hello = wire::HelloRequest {
        versions: versions.to_vec(),
        client: concat!("tpi-controller/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    let answer = client.hello(hello).await.map_err(|status| {
        let theirs = status.metadata().get(VERSIONS).and_then(|theirs| theirs.to_str().ok());
        match theirs {
            Some(theirs) => Attempt::Final(ConnectError::VersionMismatch {
                ours: versions.to_vec(),
                theirs: theirs.split(',').filter_map(|version| version.trim().parse().ok()).collect(),
            }),
            None => Attempt::Next(CallError::from_status(status).to_string()),
        }
    })?;
    let answer = answer.into_inner();
    if answer.task != task.as_str() || (answer.slot, answer.attempt) != (run.slot.0, run.attempt.0) {
        return Err(Attempt::Wrong(format!(
            "it serves run {}-{} of {}",
            answer.slot, answer.attempt, answer.task
        )));
    }
    let time = Timestamp::from_nanosecond(answer.now_unix_nanos.into()).unwrap_or_else(|_| Timestamp::now());
    let about = About { run, address: address.to_owned(), agent: answer.agent, time };
    Ok(Connection { client, about: Arc::new(about) })
}

impl Connection {
    /// Slot and attempt that it serves.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.about.run
    }

    /// `host:port` that answered.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.about.address
    }

    /// Name and version of the agent.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.about.agent
    }

    /// The agent's idea of now at `Hello`, corrected by the store's clock.
    #[must_use]
    pub fn agent_time(&self) -> Timestamp {
        self.about.time
    }

    pub(super) fn client(&self) -> AgentClient<Channel> {
        self.client.clone()
    }

    /// Whether calls can no longer be made over it. Costs one round trip on a living one.
    pub async fn is_broken(&self) -> bool {
        let hello = wire::HelloRequest { versions: PROTOCOL_VERSIONS.to_vec(), client: String::new() };
        match tokio::time::timeout(GREETING_TIMEOUT, self.client().hello(hello)).await {
            Ok(Ok(_)) => false,
            Ok(Err(status)) => matches!(CallError::from_status(status), CallError::Broken(_)),
            Err(_) => true,
        }
    }

    /// The slot's status with a generation above `after` (0: the newest at once), then every newer one. Ends after
    /// the last.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn watch(
        &self,
        after: u64,
    ) -> Result<BoxStream<'static, Result<SlotStatus, CallError>>, CallError> {
        let request = wire::WatchRequest { after_generation: after };
        let answers = self.client().watch(request).await.map_err(CallError::from_status)?.into_inner();
        Ok(answers
            .map(|answer| {
                let answer = answer.map_err(CallError::from_status)?;
                serde_json::from_slice(&answer.status_json)
                    .map_err(|error| CallError::Failed(format!("it sent a status that is none: {error}")))
            })
            .boxed())
    }

    /// The log from a byte on.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn logs(&self, from: u64) -> Result<BoxStream<'static, Result<LogItem, CallError>>, CallError> {
        let request = wire::LogsRequest { from_offset: from };
        let answers = self.client().logs(request).await.map_err(CallError::from_status)?.into_inner();
        Ok(log_items(answers).boxed())
    }

    /// Samples from a sequence number on.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn telemetry(
        &self,
        from: u64,
    ) -> Result<BoxStream<'static, Result<Vec<Sample>, CallError>>, CallError> {
        let request = wire::TelemetryRequest { from_sequence: from };
        let answers = self.client().telemetry(request).await.map_err(CallError::from_status)?.into_inner();
        Ok(answers
            .map(|answer| {
                answer
                    .map(|answer| answer.samples.into_iter().map(sample).collect())
                    .map_err(CallError::from_status)
            })
            .boxed())
    }

    /// Asks the slot to stop; `grace` overrides the task's. Returns the generation that records the request.
    ///
    /// # Errors
    /// [`CallError::Ending`] when there is nothing left to stop; see [`CallError`].
    pub async fn stop(&self, grace: Option<Duration>) -> Result<u64, CallError> {
        let grace_millis = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let answer =
            self.client().stop(wire::StopRequest { grace_millis }).await.map_err(CallError::from_status)?;
        Ok(answer.into_inner().generation)
    }
}

fn log_items(
    answers: Streaming<wire::LogsResponse>,
) -> impl futures::Stream<Item = Result<LogItem, CallError>> + Send {
    answers.flat_map(|answer| {
        let mut items = Vec::with_capacity(1);
        match answer.map_err(CallError::from_status) {
            Ok(answer) => {
                let records: Vec<_> = answer.records.into_iter().filter_map(record).collect();
                if !records.is_empty() {
                    items.push(Ok(LogItem::Records(records)));
                }
                if let Some(length) = answer.complete_at {
                    items.push(Ok(LogItem::Complete(length)));
                }
            }
            Err(error) => items.push(Err(error)),
        }
        futures::stream::iter(items)
    })
}

/// `None` for an empty one, which says nothing.
fn record(record: wire::LogRecord) -> Option<Record> {
    let stream = match record.stream() {
        wire::LogStream::Stderr => LogStream::Stderr,
        // A stream that only a newer agent knows is shown rather than lost.
        wire::LogStream::Stdout | wire::LogStream::Unspecified => LogStream::Stdout,
    };
    (!record.data.is_empty()).then_some(Record {
        offset: record.offset,
        time_unix_nanos: record.time_unix_nanos,
        stream,
        data: record.data,
    })
}

fn sample(sample: wire::TelemetrySample) -> Sample {
    Sample {
        sequence: sample.sequence,
        time_unix_nanos: sample.time_unix_nanos,
        cpu: sample.cpu,
        memory_used: sample.memory_used_bytes,
        memory_total: sample.memory_total_bytes,
        disk_used: sample.disk_used_bytes,
        disk_total: sample.disk_total_bytes,
        network_received: sample.network_received_bytes,
        network_sent: sample.network_sent_bytes,
        gpus: sample
            .gpus
            .into_iter()
            .map(|gpu| GpuSample {
                index: gpu.index,
                name: gpu.name,
                utilisation: gpu.utilisation,
                memory_used: gpu.memory_used_bytes,
                memory_total: gpu.memory_total_bytes,
                power_watts: gpu.power_watts,
                temperature_celsius: gpu.temperature_celsius,
                processes: gpu.processes,
            })
            .collect(),
    }
}
