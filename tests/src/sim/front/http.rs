//! Listening, and connections that can be cut.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::body::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

/// A request, whole.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    /// As it was sent.
    pub(super) path: String,
    /// As it was sent, without `?`.
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) from: SocketAddr,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn new(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        let _none = headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
        Self { status, headers, body: body.into() }
    }

    pub(super) fn xml(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "text/xml", body)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
pub(super) struct Cut;

/// Answers every request, until it is aborted.
pub(super) async fn serve<F>(listener: TcpListener, answer: Arc<F>) -> Infallible
where
    F: AsyncFnAnswer,
{
    let mut connections = JoinSet::new();
    // What a call does is done to its end, also when its client hangs up meanwhile; ends with this.
    let calls = Arc::new(Mutex::new(JoinSet::new()));
    loop {
        let accepted = listener.accept().await;
        // Those that are over.
        while connections.try_join_next().is_some() {}
        let Ok((stream, from)) = accepted else {
            tokio::task::yield_now().await;
            continue;
        };
        let _failed = stream.set_nodelay(true);
        let (answer, calls) = (Arc::clone(&answer), Arc::clone(&calls));
        let _handle = connections.spawn(async move {
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let (answer, calls) = (Arc::clone(&answer), Arc::clone(&calls));
                async move {
                    let (head, body) = request.into_parts();
                    // Who hangs up before the end gets no answer.
                    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
                    let request = Request {
                        method: head.method,
                        path: head.uri.path().to_owned(),
                        query: head.uri.query().unwrap_or_default().to_owned(),
                        headers: head.headers,
                        body,
                        from,
                    };
                    let (send, told) = tokio::sync::oneshot::channel();
                    {
                        let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
                        while calls.try_join_next().is_some() {}
                        let _handle = calls.spawn(async move {
                            // Nobody may be listening any more.
                            let _told = send.send(answer.answer(request).await);
                        });
                    }
                    let answer = told.await.map_err(|_| Cut)??;
                    let mut response = hyper::Response::new(Full::new(answer.body));
                    *response.status_mut() = answer.status;
                    *response.headers_mut() = answer.headers;
                    Ok::<_, Cut>(response)
                }
            });
            // Its end is not an error of ours, whatever it is.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// What answers requests.
pub(super) trait AsyncFnAnswer: Send + Sync + 'static {
    fn answer(&self, request: Request) -> impl Future<Output = Result<Answer, Cut>> + Send;
}
