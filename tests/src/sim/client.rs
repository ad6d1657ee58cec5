//! Plain requests to AWS, real or simulated, with nothing of the product's own code: for tests that look from outside.

use anyhow::{Context as _, Result, ensure};
use axum::http::{HeaderMap, Method};
use jiff::Timestamp;

use crate::instance::sigv4::{self, Credential};

/// Somebody with credentials.
#[derive(Debug, Clone)]
pub struct Client {
    /// `http://…`, of all services.
    pub endpoint: String,
    /// Region that is asked.
    pub region: String,
    /// Who asks.
    pub credential: Credential,
}

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// HTTP's.
    pub status: u16,
    /// Text.
    pub body: String,
}

impl Told {
    /// Contents of every element of that name, in order; of elements without children of the same name.
    #[must_use]
    pub fn texts(&self, element: &str) -> Vec<String> {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let parts = self.body.split(&open).skip(1);
        parts.filter_map(|rest| rest.split_once(&close).map(|(text, _)| text.to_owned())).collect()
    }

    /// The first one's; empty when there is none.
    #[must_use]
    pub fn text(&self, element: &str) -> String {
        self.texts(element).into_iter().next().unwrap_or_default()
    }
}

impl Client {
    /// With the keys of somebody; the token of a user is empty.
    #[must_use]
    pub fn new(endpoint: &str, region: &str, (key, secret, token): (&str, &str, &str)) -> Self {
        let credential = Credential {
            key: key.to_owned(),
            secret: secret.to_owned(),
            token: token.to_owned(),
            expires: Timestamp::MAX,
        };
        Self { endpoint: endpoint.to_owned(), region: region.to_owned(), credential }
    }

    /// A call of the query protocol, whatever is answered.
    pub async fn ask(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<Told> {
        let version = match service {
            "ec2" => "2016-11-15",
            "autoscaling" => "2011-01-01",
            "iam" => "2010-05-08",
            _ => "2011-06-15",
        };
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", version).extend_pairs(parameters);
        let kind = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        self.send(service, Method::POST, "/", "", &[kind], form.finish().as_bytes()).await
    }

    /// A call that has to succeed.
    pub async fn done(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<Told> {
        let told = self.ask(service, action, parameters).await?;
        ensure!(told.status == 200, "{action}: {told:?}");
        Ok(told)
    }

    /// A signed request, whatever is answered.
    pub async fn send(
        &self,
        service: &str,
        method: Method,
        path: &str,
        query: &str,
        more: &[(&'static str, &str)],
        body: &[u8],
    ) -> Result<Told> {
        let host = self.endpoint.trim_start_matches("http://").trim_end_matches('/');
        let mut headers = HeaderMap::new();
        let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let _none = headers.insert("host", host.parse()?);
        let _none = headers.insert("x-amz-date", date.parse()?);
        if !self.credential.token.is_empty() {
            let _none = headers.insert("x-amz-security-token", self.credential.token.parse()?);
        }
        if service == "s3" {
            use sha2::Digest as _;
            let hash = hex::encode(sha2::Sha256::digest(body));
            let _none = headers.insert("x-amz-content-sha256", hash.parse()?);
        }
        for (name, value) in more {
            let _none = headers.insert(*name, value.parse()?);
        }
        let request = sigv4::Request { method: method.as_str(), path, query, headers: &headers, body };
        let region = if service == "iam" { "us-east-1" } else { &self.region };
        let signed = sigv4::authorization(&request, &self.credential, (region, service));
        let signed = signed.map_err(|refusal| anyhow::anyhow!("signing: {refusal}"))?;
        let _none = headers.insert("authorization", signed.parse()?);
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        self.plain(method, &target, headers, body).await
    }

    /// A request as it is.
    pub async fn plain(&self, method: Method, target: &str, headers: HeaderMap, body: &[u8]) -> Result<Told> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("{}{target}", self.endpoint.trim_end_matches('/'));
        let answer = client.request(method, url).headers(headers).body(body.to_vec()).send().await;
        let answer = answer.with_context(|| format!("asking {target}"))?;
        Ok(Told { status: answer.status().as_u16(), body: answer.text().await? })
    }
}
