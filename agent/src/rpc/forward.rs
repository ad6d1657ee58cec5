//! One TCP connection from the machine to a port that it can see.
//!
//! Each direction is closed on its own: a half-close of one side is passed on and the other goes on. The stream ends
//! when both are closed; when the client goes away without a word, both are dropped.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};
use tpi_proto::agent_v1::{ForwardRequest, ForwardResponse, forward_request, forward_response};

use super::refused;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 * 1024;
/// Chunks on their way to the client.
const IN_FLIGHT: usize = 8;

type Answer = Result<ForwardResponse, Status>;

/// Takes the first message, connects, and carries bytes from then on.
pub(super) async fn open(
    mut requests: Streaming<ForwardRequest>,
    tasks: &TaskTracker,
) -> Result<impl Stream<Item = Answer> + Send + 'static, Status> {
    let target = match requests.message().await?.and_then(|first| first.message) {
        Some(forward_request::Message::Open(open)) => open,
        Some(forward_request::Message::Data(_) | forward_request::Message::HalfClose(_)) | None => {
            return Err(refused("the first message of Forward must be `open`".to_owned()));
        }
    };
    let tcp = connect(&target.host, target.port).await?;
    let (answers, stream) = mpsc::channel(IN_FLIGHT);
    tasks.spawn(async move {
        let (read, write) = tcp.into_split();
        let connected = forward_response::Message::Connected(true);
        if answers.send(Ok(ForwardResponse { message: Some(connected) })).await.is_err() {
            return;
        }
        // Whoever is gone is noticed by both directions: the client's stream fails, and its answers are refused.
        tokio::select! {
            () = answers.closed() => {}
            ((), ()) = async { tokio::join!(upwards(requests, write), downwards(read, &answers)) } => {}
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn connect(host: &str, port: u32) -> Result<TcpStream, Status> {
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| refused(format!("{port} is not a TCP port")))?;
    let shown = if host.is_empty() { "127.0.0.1" } else { host };
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let addresses: Vec<IpAddr> = match host {
        "" => vec![Ipv4Addr::LOCALHOST.into()],
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        // Resolving would need the C library's modules, which a static program cannot load.
        _ => vec![literal.parse().map_err(|_| {
            refused(format!(
                "cannot forward to {host:?}: the agent resolves no names but localhost; use an IP address"
            ))
        })?],
    };
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let target = SocketAddr::new(address, port);
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
            Ok(Ok(tcp)) => {
                // Interactive protocols suffer otherwise; where it cannot be set, so be it.
                let (Ok(()) | Err(_)) = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(refused(format!("connecting to {shown}:{port} on the machine: {failure}")))
}

/// Client to port.
async fn upwards(mut requests: Streaming<ForwardRequest>, mut write: OwnedWriteHalf) {
    loop {
        let message = match requests.message().await {
            Ok(Some(request)) => request.message,
            // Ended without a half-close: the same.
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "a forwarded stream broke");
                return;
            }
        };
        match message {
            Some(forward_request::Message::Data(data)) => {
                if write.write_all(&data).await.is_err() {
                    // The port takes no more; the client learns it from the other direction.
                    return;
                }
            }
            Some(forward_request::Message::HalfClose(_)) => break,
            Some(forward_request::Message::Open(_)) | None => {}
        }
    }
    // Fails when the port has closed already.
    let (Ok(()) | Err(_)) = write.shutdown().await;
}

/// Port to client.
async fn downwards(mut read: OwnedReadHalf, answers: &mpsc::Sender<Answer>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let message = match read.read_buf(&mut buffer).await {
            Ok(0) => forward_response::Message::HalfClose(true),
            Ok(_) => forward_response::Message::Data(Bytes::from(buffer.split())),
            Err(error) => {
                let broken = refused(format!("the forwarded connection broke: {error}"));
                let (Ok(()) | Err(_)) = answers.send(Err(broken)).await;
                return;
            }
        };
        let last = matches!(message, forward_response::Message::HalfClose(_));
        if answers.send(Ok(ForwardResponse { message: Some(message) })).await.is_err() || last {
            return;
        }
    }
}
