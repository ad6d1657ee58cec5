//! TCP through the connection.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tpi_proto::{
    agent_v1::{self as wire, ForwardResponse, forward_request, forward_response},
    id::{RunId, TaskId},
};
use tpi_store::Store;

use super::{
    connect::{CallError, ConnectError, Connection, StreamError, connect},
    identity::UserIdentity,
};

const CHUNK: usize = 64 * 1024;
/// Messages on their way to the agent.
const IN_FLIGHT: usize = 8;

/// Carries one stream to `host:port` as seen from the machine (empty host: 127.0.0.1), both ways, each closed on its
/// own.
///
/// # Errors
/// See [`StreamError`].
pub async fn forward(
    connection: &Connection,
    host: &str,
    port: u16,
    local: impl AsyncRead + AsyncWrite + Send,
) -> Result<(), StreamError> {
    let (requests, outgoing) = mpsc::channel(IN_FLIGHT);
    let open = wire::ForwardOpen { host: host.to_owned(), port: port.into() };
    // The receiver is alive: it is the call's own, below.
    let (Ok(()) | Err(_)) = requests.send(message(forward_request::Message::Open(open))).await;
    let answers = connection
        .client()
        .forward(ReceiverStream::new(outgoing))
        .await
        .map_err(CallError::from_status)?
        .into_inner();
    let (read, write) = tokio::io::split(local);
    let mut upwards = pin!(upwards(read, requests));
    let mut downwards = pin!(downwards(answers, write));
    let mut sending = true;
    loop {
        tokio::select! {
            sent = &mut upwards, if sending => {
                sending = false;
                sent?;
            }
            // The agent ends the call when both directions are closed, or when it broke.
            received = &mut downwards => return received,
        }
    }
}

fn message(message: forward_request::Message) -> wire::ForwardRequest {
    wire::ForwardRequest { message: Some(message) }
}

async fn upwards(
    mut read: impl AsyncRead + Unpin,
    requests: mpsc::Sender<wire::ForwardRequest>,
) -> Result<(), StreamError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let next = tokio::select! {
            count = read.read_buf(&mut buffer) => match count {
                Ok(0) => forward_request::Message::HalfClose(true),
                Ok(_) => forward_request::Message::Data(Bytes::from(buffer.split())),
                Err(source) => return Err(StreamError::Local { operation: "reading the local stream", source }),
            },
            // The call is over; the other direction says how.
            () = requests.closed() => return Ok(()),
        };
        let last = matches!(next, forward_request::Message::HalfClose(_));
        if requests.send(message(next)).await.is_err() || last {
            return Ok(());
        }
    }
}

async fn downwards(
    mut answers: Streaming<ForwardResponse>,
    mut write: impl AsyncWrite + Unpin,
) -> Result<(), StreamError> {
    let local = |source| StreamError::Local { operation: "writing the local stream", source };
    while let Some(answer) = answers.message().await.map_err(CallError::from_status)? {
        match answer.message {
            Some(forward_response::Message::Data(data)) => {
                write.write_all(&data).await.map_err(local)?;
                write.flush().await.map_err(local)?;
            }
            Some(forward_response::Message::HalfClose(_)) => write.shutdown().await.map_err(local)?,
            Some(forward_response::Message::Connected(_)) | None => {}
        }
    }
    Ok(())
}

/// A local port whose connections are carried to the machine.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `local` (port 0: any).
    ///
    /// # Errors
    /// The address is taken, or is not this computer's.
    pub async fn bind(local: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(local).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`. Dials when the first connection comes, and again when the connection has broken.
    /// `failed` is told of each stream that failed. The caller publishes `identity` first.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a plain part of the address that bytes are carried to"
    )]
    pub async fn serve(
        self,
        store: &Store,
        task: &TaskId,
        run: RunId,
        identity: &UserIdentity,
        host: &str,
        port: u16,
        stop: CancellationToken,
        failed: impl Fn(&(dyn std::error::Error + 'static)) + Send + Sync,
    ) {
        let target = Arc::new(Target {
            store: store.clone(),
            task: task.clone(),
            run,
            identity: identity.clone(),
            host: host.to_owned(),
            port,
            connection: Mutex::new(None),
        });
        let mut streams = JoinSet::new();
        loop {
            let taken = tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = streams.join_next() => {
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(CarryError::Connect(error))) => failed(&error),
                        Ok(Err(CarryError::Forward(error))) => failed(&error),
                        Err(error) => failed(&error),
                    }
                    continue;
                }
                taken = self.listener.accept() => taken,
            };
            match taken {
                Ok((local, _)) => {
                    // Interactive protocols suffer otherwise; where it cannot be set, so be it.
                    let (Ok(()) | Err(_)) = local.set_nodelay(true);
                    streams.spawn(carry(target.clone(), local));
                }
                Err(error) => {
                    failed(&error);
                    // Out of descriptors, most likely: give others time to close some.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        streams.shutdown().await;
    }
}

/// Where a listener's connections go.
struct Target {
    store: Store,
    task: TaskId,
    run: RunId,
    identity: UserIdentity,
    host: String,
    port: u16,
    connection: Mutex<Option<Connection>>,
}

enum CarryError {
    Connect(ConnectError),
    Forward(StreamError),
}

impl Target {
    async fn connection(&self) -> Result<Connection, ConnectError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            // Cheap on a living connection, and the only way to learn that it is one.
            if !connection.is_broken().await {
                return Ok(connection.clone());
            }
        }
        let fresh = connect(&self.store, &self.task, self.run, &self.identity).await?;
        *held = Some(fresh.clone());
        Ok(fresh)
    }
}

async fn carry(target: Arc<Target>, local: TcpStream) -> Result<(), CarryError> {
    let connection = target.connection().await.map_err(CarryError::Connect)?;
    forward(&connection, &target.host, target.port, local).await.map_err(CarryError::Forward)
}
