//! moto: a process of our own, reached by nobody else.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::Bytes;
use http::{HeaderMap, Method};

use super::{
    form::Form,
    http::{Answer, Request},
    xml::Element,
};

const PATIENCE: Duration = Duration::from_secs(120);
/// It ends with us, however we end: our side of its standard input is closed then.
const PROGRAM: &str = "import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(sys.argv[1:])";

#[derive(Debug)]
pub(super) struct Moto {
    process: Child,
    url: String,
    client: reqwest::Client,
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

impl Moto {
    pub(super) async fn start(place: &Path, images: &Path) -> Result<Self> {
        // The client wants one, though nothing here is encrypted.
        drop(rustls::crypto::ring::default_provider().install_default());
        let python = place.join("bin/python");
        ensure!(python.is_file(), "there is no {}: moto is not installed there", python.display());
        ensure!(images.is_file(), "there is no {}", images.display());
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("making a client of the emulator")?;
        // A port that was free a moment ago may be taken by now.
        for _ in 0..3 {
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let process = Command::new(&python)
                .args(["-c", PROGRAM, "-H", "127.0.0.1", "-p", &port.to_string()])
                // The images it brings are of 2017, and it believes in any name of an image or a type.
                .env("MOTO_AMIS_PATH", images)
                .env("MOTO_ENABLE_AMI_VALIDATION", "true")
                .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("starting {}", python.display()))?;
            let mut moto = Self { process, url: format!("http://127.0.0.1:{port}"), client: client.clone() };
            if moto.is_up().await? {
                return Ok(moto);
            }
        }
        bail!("the emulator does not start: {} -m moto.server", python.display())
    }

    async fn is_up(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let url = format!("{}/moto-api/", self.url);
        while self.process.try_wait()?.is_none() {
            if self.client.get(&url).send().await.is_ok() {
                return Ok(true);
            }
            ensure!(begun.elapsed() < PATIENCE, "the emulator has not come up in {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }

    /// A request of somebody who was let through, in the emulator's own name.
    pub(super) async fn forward(&self, request: &Request, service: &str, region: &str) -> Result<Answer> {
        let mut headers = request.headers.clone();
        for gone in
            ["host", "authorization", "content-length", "connection", "expect", "x-amz-security-token", "te"]
        {
            drop(headers.remove(gone));
        }
        let of_signature = |pair: &&str| {
            let name = pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
            let of = [
                "algorithm",
                "credential",
                "date",
                "expires",
                "signedheaders",
                "signature",
                "security-token",
            ];
            !name.strip_prefix("x-amz-").is_some_and(|rest| of.contains(&rest))
        };
        let query = request.query.split('&').filter(of_signature).collect::<Vec<_>>().join("&");
        let target =
            if query.is_empty() { request.path.clone() } else { format!("{}?{query}", request.path) };
        self.send(request.method.clone(), &target, headers, request.body.clone(), service, region).await
    }

    async fn send(
        &self,
        method: Method,
        target: &str,
        mut headers: HeaderMap,
        body: Bytes,
        service: &str,
        region: &str,
    ) -> Result<Answer> {
        let region = if service == "iam" { "us-east-1" } else { region };
        let credential = format!(
            "AWS4-HMAC-SHA256 Credential=test/20260101/{region}/{service}/aws4_request, SignedHeaders=host, \
             Signature=0"
        );
        let _none = headers.insert("authorization", credential.parse().context("a header")?);
        let request =
            self.client.request(method, format!("{}{target}", self.url)).headers(headers).body(body);
        let response = request.send().await.with_context(|| format!("asking the emulator's {service}"))?;
        let status = response.status();
        let mut headers = response.headers().clone();
        for gone in ["transfer-encoding", "connection", "date", "server", "keep-alive"] {
            drop(headers.remove(gone));
        }
        let body = response.bytes().await.with_context(|| format!("asking the emulator's {service}"))?;
        Ok(Answer { status, headers, body })
    }

    /// A call of our own; what it answers, whether it succeeded or not.
    pub(super) async fn ask(&self, service: &str, region: &str, action: &str, form: &Form) -> Result<Answer> {
        let version = match service {
            "ec2" => "2016-11-15",
            "iam" => "2010-05-08",
            other => bail!("no version of {other} is known"),
        };
        let mut form = form.clone();
        form.set("Action", action);
        form.set("Version", version);
        let mut headers = HeaderMap::new();
        let kind = http::HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        let _none = headers.insert(http::header::CONTENT_TYPE, kind);
        self.send(Method::POST, "/", headers, form.encoded().into(), service, region).await
    }

    /// A call of our own that has to succeed.
    pub(super) async fn call<'a>(
        &self,
        service: &str,
        region: &str,
        action: &str,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Element> {
        let answer = self.ask(service, region, action, &Form::of(pairs)).await?;
        ensure!(answer.status.is_success(), "{action} in the emulator: {}", answer.text());
        Element::parse(&answer.text()).with_context(|| format!("reading the emulator's {action}"))
    }

    /// A look into S3.
    pub(super) async fn get(&self, target: &str) -> Result<Element> {
        let answer =
            self.send(Method::GET, target, HeaderMap::new(), Bytes::new(), "s3", "us-east-1").await?;
        ensure!(answer.status.is_success(), "GET {target} of the emulator: {}", answer.text());
        Element::parse(&answer.text()).with_context(|| format!("reading the emulator's {target}"))
    }
}
