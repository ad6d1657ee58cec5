//! The provider `iterative/iterative` of Terraform: the same engine as the command line's, behind Terraform's plugin
//! protocol.
//!
//! * `handshake`, `tls`: how Terraform and this program find each other, and prove who they are.
//! * `service`: the protocol; no generated type leaves it but diagnostics and the schema.
//! * `schema`, `value`: the resource, as data; values in any of Terraform's encodings.
//! * `config`, `plan`: pure: what a configuration asks for, and what it comes to beside what there is.
//! * `provider`, `observe`, `claims`, `private`: validate, plan, apply, read and import, by the engine.
//! * [`install`]: where Terraform finds this program.
//!
//! The life of the process:
//!
//! ```text
//! handshake ─► serving ─Stop─► serving, work cut off ─┐
//!    │            └──Shutdown, SIGTERM, parent gone───┴─► draining ─► end
//!    └─ refused: one line of text, end
//! ```

use std::{fs, io, time::Duration};

use futures::StreamExt as _;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tpi_proto::{
    tfplugin_control::grpc_controller_server::GrpcControllerServer,
    tfplugin5::provider_server::ProviderServer,
};

mod claims;
mod config;
mod diagnostics;
mod handshake;
mod hclog;
pub mod install;
mod observe;
mod plan;
mod private;
mod provider;
mod schema;
mod service;
mod tls;
mod value;

pub use handshake::HandshakeError;

/// Terraform kills a plugin about two seconds after it has asked it to end.
const DRAIN: Duration = Duration::from_millis(1500);
/// How often the parent is looked at.
const PARENT_POLL: Duration = Duration::from_secs(2);
/// States hold logs, and scripts may be long.
const MESSAGE_LIMIT: usize = 256 << 20;

/// Serves Terraform until it has had enough. `announce` gets the line that Terraform waits for on stdout.
///
/// # Errors
/// [`HandshakeError`]: it was not Terraform that started this program, or it cannot be served.
pub async fn serve(announce: impl FnOnce(&str) -> io::Result<()>) -> Result<(), HandshakeError> {
    let greeting = handshake::Greeting::read(|name| std::env::var(name).ok())?;
    hclog::install();
    let folder = handshake::PrivateFolder::make()?;
    let socket = folder.socket();
    let failed = |source| HandshakeError::Socket { path: socket.clone(), source };
    let listener = UnixListener::bind(&socket).map_err(failed)?;
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed)?;
    let gate = tls::Gate::new(greeting.client)?;
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let provider = provider::Provider::new(stop.clone()).map_err(failed)?;
    // Ctrl-C at a terminal reaches us too, and Terraform says itself what is to be done about it.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    announce(&handshake::line(&socket, &gate.certificate)).map_err(failed)?;

    let parent = rustix::process::getppid();
    let watch = async {
        loop {
            tokio::select! {
                _ = interrupts.recv() => {}
                _ = terminations.recv() => break,
                () = end.cancelled() => break,
                () = tokio::time::sleep(PARENT_POLL) => {
                    if rustix::process::getppid() != parent {
                        tracing::warn!("Terraform is gone");
                        break;
                    }
                }
            }
        }
        // What is being done is finished by the next command.
        stop.cancel();
        end.cancel();
    };
    let (accepted, connections) = mpsc::channel(4);
    let service = ProviderServer::new(service::Service(provider))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .add_service(GrpcControllerServer::new(service::Control(end.clone())))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections).map(|connection| Ok::<_, io::Error>(Peer(connection))),
            end.clone().cancelled_owned(),
        );
    let bounded = async {
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => served,
            () = async { end.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
        }
    };
    let (served, (), ()) = tokio::join!(bounded, gate.run(listener, accepted, end.clone()), watch);
    if let Err(error) = served {
        tracing::error!(error = &error as &dyn std::error::Error, "the service ended");
    }
    Ok(())
}

/// A connection, as the server wants it.
#[derive(Debug)]
struct Peer(tls::Connection);

impl Connected for Peer {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl tokio::io::AsyncRead for Peer {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Peer {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
