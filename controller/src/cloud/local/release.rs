//! Where machines of a local group give themselves back: one HTTP call on the loopback interface.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use tokio::sync::{mpsc, oneshot};
use tpi_proto::{
    id::MachineId,
    machine::{HttpCall, Signing},
};

const TOKEN: &str = "x-tpi-machine-token";

/// A machine asks to be released.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) machine: MachineId,
    pub(super) token: String,
    /// Whether it is one of the group's and the token is its own.
    pub(super) reply: oneshot::Sender<bool>,
}

/// The call that a machine's configuration carries.
pub(super) fn call(port: u16, token: &str) -> HttpCall {
    HttpCall {
        method: "POST".to_owned(),
        url: format!("http://127.0.0.1:{port}/release/{{machine}}"),
        headers: [(TOKEN.to_owned(), token.to_owned())].into(),
        body: String::new(),
        token: None,
        signing: Signing::None,
    }
}

/// Serves until it is dropped.
pub(super) async fn serve(
    listener: tokio::net::TcpListener,
    releases: mpsc::Sender<Release>,
) -> std::io::Result<()> {
    let app = Router::new().route("/release/{machine}", post(release)).with_state(releases);
    axum::serve(listener, app).await
}

async fn release(
    State(releases): State<mpsc::Sender<Release>>,
    Path(machine): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    let Some(token) = headers.get(TOKEN).and_then(|t| t.to_str().ok()) else {
        return StatusCode::UNAUTHORIZED;
    };
    let (reply, answer) = oneshot::channel();
    let request = Release { machine: MachineId(machine), token: token.to_owned(), reply };
    if releases.send(request).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match answer.await {
        Ok(true) => StatusCode::OK,
        Ok(false) => StatusCode::FORBIDDEN,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
