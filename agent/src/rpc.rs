//! Where clients are served: `tpi.agent.v1` over the connections that [`crate::tls`] lets in.
//!
//! Every call but `Hello` is refused on a connection that has not said `Hello`. Requests become events of the
//! supervisor or read-only views of it; nothing here owns the state of the task. No type of the RPC library
//! leaves this module.

mod forward;
mod shell;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::server::Connected};
use tpi_proto::{
    PROTOCOL_VERSIONS,
    agent_v1::{self as wire, agent_server},
    fault::chain,
    machine::MachineConfig,
    state::{SlotState, SlotStatus},
};
use tpi_store::{Store, log::Record, log::Stream as LogStream, telemetry::Sample};

use crate::{
    identity::{self, IdentityError, KeyPair, agent_name},
    logs::{Batch, ReadError},
    supervisor::{Ending, Handle},
    tls::{ClientStream, Gate, Limits},
};

/// Sent in the trailers of every error that the service means, as opposed to those that a broken connection makes.
const KIND: &str = "tpi-kind";
/// Sent with a refused `Hello`: the versions spoken here, separated by commas.
const VERSIONS: &str = "tpi-versions";

/// What a client may send before it is read: generous for a forwarded upload, small beside the agent's memory.
const RECEIVE_WINDOW: u32 = 4 * 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
const STREAMS: u32 = 1024;

/// Why clients cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or is not this machine's.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The key, or publishing where to be found.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key is not usable for TLS.
    #[error("preparing TLS")]
    Tls(#[source] rustls::Error),
}

/// Makes this run's key, binds `config.listen`, publishes the identity, and serves until `shutdown`.
///
/// Returns once the agent can be reached (or at once when `config.listen` is absent). After `shutdown` is
/// cancelled no new connection is taken, and the task ends when open streams have ended; the caller bounds the wait
/// and aborts it afterwards.
///
/// # Errors
/// The address cannot be bound, or the identity cannot be published.
pub async fn serve(
    handle: Handle,
    config: &MachineConfig,
    store: &Store,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, ServeError> {
    serve_within(handle, config, store, shutdown, Limits::default()).await
}

/// [`serve`] with other bounds than the usual ones.
///
/// # Errors
/// As [`serve`].
pub async fn serve_within(
    handle: Handle,
    config: &MachineConfig,
    store: &Store,
    shutdown: CancellationToken,
    limits: Limits,
) -> Result<JoinHandle<()>, ServeError> {
    let Some(address) = config.listen else {
        return Ok(tokio::spawn(async move { shutdown.cancelled().await }));
    };
    let pair = KeyPair::create(&config.root, handle.task(), handle.run(), handle.now(), config.deadline)?;
    let listen = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let gate = Gate::new(listener, &pair, &handle, store, limits).map_err(ServeError::Tls)?;
    // Only now: whoever reads the identity finds somebody there.
    identity::publish(store, config, handle.run(), &pair.certificate_pem, bound).await?;
    tracing::info!(%bound, run = %handle.run(), "serving clients");
    Ok(tokio::spawn(run(gate, handle, shutdown)))
}

async fn run(gate: Gate, handle: Handle, shutdown: CancellationToken) {
    let (accepted, connections) = mpsc::channel(16);
    let sessions = TaskTracker::new();
    // When this task is aborted, nobody stays connected.
    let _cut_off = gate.everybody().drop_guard();
    let service = agent_server::AgentServer::new(Service { handle, sessions: sessions.clone() });
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(RECEIVE_WINDOW)
        .initial_connection_window_size(RECEIVE_WINDOW * 2)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections).map(Ok::<_, io::Error>),
            shutdown.clone().cancelled_owned(),
        );
    let (served, ()) = tokio::join!(server, gate.run(accepted, shutdown));
    if let Err(error) = served {
        tracing::error!(error = &error as &dyn std::error::Error, "the service for clients ended");
    }
    // Shells end with their streams, which have ended.
    sessions.close();
    sessions.wait().await;
}

// === connections ===

/// What is known of a connection; shared by its calls.
#[derive(Debug)]
struct Peer {
    greeted: AtomicBool,
    from: SocketAddr,
}

impl Connected for ClientStream {
    type ConnectInfo = Arc<PeerInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        tracing::info!(from = %self.peer(), client = %self.fingerprint(), "a client connected");
        Arc::new(PeerInfo(Peer { greeted: AtomicBool::new(false), from: self.peer() }))
    }
}

/// Opaque outside of this module.
#[derive(Debug)]
pub(crate) struct PeerInfo(Peer);

fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request
        .extensions()
        .get::<Arc<PeerInfo>>()
        .map(|info| &info.0)
        .ok_or_else(|| failed("a call without a connection".to_owned()))
}

fn greeted<T>(request: &Request<T>) -> Result<(), Status> {
    if peer(request)?.greeted.load(Ordering::Acquire) {
        return Ok(());
    }
    Err(with_kind(
        Code::FailedPrecondition,
        "the first call on a connection must be Hello".to_owned(),
        "refused",
    ))
}

// === errors ===

fn with_kind(code: Code, message: String, kind: &'static str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(KIND, tonic::metadata::MetadataValue::from_static(kind));
    Status::with_metadata(code, message, metadata)
}

/// What was asked for is wrong or impossible now.
fn refused(message: String) -> Status {
    with_kind(Code::FailedPrecondition, message, "refused")
}

/// The agent could not do it.
fn failed(message: String) -> Status {
    with_kind(Code::Internal, message, "failed")
}

// === the service ===

struct Service {
    handle: Handle,
    sessions: TaskTracker,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl agent_server::Agent for Service {
    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        let connection = peer(&request)?;
        let offered = &request.get_ref().versions;
        let Some(version) = PROTOCOL_VERSIONS.iter().copied().find(|own| offered.contains(own)) else {
            let mut status = refused(format!(
                "this agent speaks protocol versions {PROTOCOL_VERSIONS:?}, not {offered:?}"
            ));
            let own = PROTOCOL_VERSIONS.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            if let Ok(own) = own.parse() {
                status.metadata_mut().insert(VERSIONS, own);
            }
            return Err(status);
        };
        connection.greeted.store(true, Ordering::Release);
        tracing::debug!(from = %connection.from, client = request.get_ref().client, version, "greeted");
        Ok(Response::new(wire::HelloResponse {
            version,
            agent: agent_name(),
            task: self.handle.task().to_string(),
            slot: self.handle.run().slot.0,
            attempt: self.handle.run().attempt.0,
            now_unix_nanos: i64::try_from(self.handle.now().as_nanosecond()).unwrap_or(i64::MAX),
        }))
    }

    type WatchStream = Answers<wire::WatchResponse>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        greeted(&request)?;
        let after = request.get_ref().after_generation;
        Ok(Response::new(Box::pin(watch(&self.handle, after))))
    }

    type LogsStream = Answers<wire::LogsResponse>;

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        greeted(&request)?;
        let batches = self.handle.logs().stream(request.get_ref().from_offset);
        Ok(Response::new(Box::pin(batches.map(|batch| match batch {
            Ok(Batch::Records(records)) => Ok(wire::LogsResponse {
                records: records.into_iter().map(record).collect(),
                complete_at: None,
            }),
            Ok(Batch::Complete(length)) => {
                Ok(wire::LogsResponse { records: Vec::new(), complete_at: Some(length) })
            }
            Err(
                error @ (ReadError::Spool(_)
                | ReadError::Damaged(_)
                | ReadError::Store(_)
                | ReadError::Cut(_)),
            ) => Err(failed(chain(&error))),
        }))))
    }

    type TelemetryStream = Answers<wire::TelemetryResponse>;

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        greeted(&request)?;
        let samples = self.handle.telemetry().stream(request.get_ref().from_sequence);
        Ok(Response::new(Box::pin(samples.map(|samples| match samples {
            Ok(samples) => Ok(wire::TelemetryResponse { samples: samples.into_iter().map(sample).collect() }),
            Err(error) => Err(failed(chain(&error))),
        }))))
    }

    async fn stop(
        &self,
        request: Request<wire::StopRequest>,
    ) -> Result<Response<wire::StopResponse>, Status> {
        greeted(&request)?;
        let grace = request.get_ref().grace_millis.map(Duration::from_millis);
        let generation = self
            .handle
            .stop(grace)
            .await
            .map_err(|ending @ Ending| with_kind(Code::Aborted, ending.to_string(), "ending"))?;
        Ok(Response::new(wire::StopResponse { generation }))
    }

    type ShellStream = Answers<wire::ShellResponse>;

    async fn shell(
        &self,
        request: Request<tonic::Streaming<wire::ShellRequest>>,
    ) -> Result<Response<Self::ShellStream>, Status> {
        greeted(&request)?;
        let context = self.handle.context().ok_or_else(|| {
            refused(
                "the machine is not ready for a shell yet: its work directory is being prepared".to_owned(),
            )
        })?;
        Ok(Response::new(Box::pin(shell::open(request.into_inner(), &context, &self.sessions).await?)))
    }

    type ForwardStream = Answers<wire::ForwardResponse>;

    async fn forward(
        &self,
        request: Request<tonic::Streaming<wire::ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        greeted(&request)?;
        Ok(Response::new(Box::pin(forward::open(request.into_inner(), &self.sessions).await?)))
    }
}

// === conversions ===

fn watch(
    handle: &Handle,
    after: u64,
) -> impl Stream<Item = Result<wire::WatchResponse, Status>> + Send + 'static {
    let mut receiver = handle.watch();
    // The newest one counts as not seen, whoever has seen it before.
    receiver.mark_changed();
    stream::unfold(Some((receiver, after)), |state| async move {
        let (mut receiver, after) = state?;
        loop {
            // The sender is gone after the last status.
            receiver.changed().await.ok()?;
            let status = receiver.borrow_and_update().clone();
            let last = is_last(&status);
            if status.generation <= after && !(last && after == 0) {
                if last {
                    return None;
                }
                continue;
            }
            let message = match serde_json::to_vec(&*status) {
                Ok(json) => Ok(wire::WatchResponse {
                    generation: status.generation,
                    status_json: Bytes::from(json),
                    last,
                }),
                Err(error) => Err(failed(format!("writing the status: {error}"))),
            };
            let next = (!last && message.is_ok()).then_some((receiver, status.generation));
            return Some((message, next));
        }
    })
}

/// Nothing follows from this machine.
fn is_last(status: &SlotStatus) -> bool {
    match &status.state {
        SlotState::Finished { .. } | SlotState::Interrupted => true,
        SlotState::Active { .. } | SlotState::Stopping { .. } => false,
    }
}

fn record(record: Record) -> wire::LogRecord {
    let stream = match record.stream {
        LogStream::Stdout => wire::LogStream::Stdout,
        LogStream::Stderr => wire::LogStream::Stderr,
    };
    wire::LogRecord {
        offset: record.offset,
        time_unix_nanos: record.time_unix_nanos,
        stream: stream.into(),
        data: record.data,
    }
}

fn sample(sample: Sample) -> wire::TelemetrySample {
    wire::TelemetrySample {
        sequence: sample.sequence,
        time_unix_nanos: sample.time_unix_nanos,
        cpu: sample.cpu,
        memory_used_bytes: sample.memory_used,
        memory_total_bytes: sample.memory_total,
        disk_used_bytes: sample.disk_used,
        disk_total_bytes: sample.disk_total,
        network_received_bytes: sample.network_received,
        network_sent_bytes: sample.network_sent,
        gpus: sample
            .gpus
            .into_iter()
            .map(|gpu| wire::GpuSample {
                index: gpu.index,
                name: gpu.name,
                utilisation: gpu.utilisation,
                memory_used_bytes: gpu.memory_used,
                memory_total_bytes: gpu.memory_total,
                power_watts: gpu.power_watts,
                temperature_celsius: gpu.temperature_celsius,
                processes: gpu.processes,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests;
