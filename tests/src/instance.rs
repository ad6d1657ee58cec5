//! What surrounds one instance of AWS, in this process: its metadata service (IMDSv2), a bucket, and its group's one
//! call. Stricter than the real ones: everything that AWS may refuse is refused, and every refusal is kept, so that a
//! test can say that there was none.
//!
//! Differs from AWS: one address for all three; one bucket, made already; credentials live for seconds if a test says
//! so; no multipart uploads, no versions, no policies. The address of the metadata service is not link-local, and
//! there are no hops to count.

mod bucket;
pub mod sigv4;
pub mod tokens;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use tpi_proto::machine::{HttpCall, Signing, TokenCall};

use self::{
    sigv4::{Credential, Refusal},
    tokens::{Asked, Tokens},
};

/// Region of everything here.
pub const REGION: &str = "eu-west-1";
/// The bucket.
pub const BUCKET: &str = "tpi-test-bucket";
/// Where the notice of an interruption appears.
pub const INTERRUPTION: &str = "spot/instance-action";
/// Where the notice appears that one is likely.
pub const REBALANCE: &str = "events/recommendations/rebalance";

const ROLE: &str = "tpi-test-role";
const ROLES: &str = "iam/security-credentials/";

/// The surroundings; they end when this is dropped.
pub struct Instance {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Surroundings>,
}

#[derive(Default)]
struct Surroundings {
    /// Metadata below `/latest/meta-data/`.
    metadata: BTreeMap<String, String>,
    tokens: Tokens,
    lifetime: Duration,
    credentials: Vec<Credential>,
    /// Requests that the token service still answers with an error.
    sulks: u32,
    /// The bucket's clock minus this computer's.
    clock: SignedDuration,
    closed: bool,
    bucket: bucket::Bucket,
    group: Vec<String>,
    refusals: Vec<String>,
    used: Vec<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Surroundings> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// Begins to answer. Each set of credentials is good for `lifetime`, and a new one is given out after an
    /// eighth of it.
    pub async fn start(lifetime: Duration) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        {
            let mut state = shared.lock();
            state.lifetime = lifetime;
            // An agent ends what an earlier one has left on its machine, found by this name: no two may share it.
            let id = format!("i-{:017x}", (u64::from(std::process::id()) << 16) | u64::from(address.port()));
            for (path, value) in [("instance-id", &*id), ("public-ipv4", "192.0.2.7"), (ROLES, ROLE)] {
                state.metadata.insert(path.to_owned(), value.to_owned());
            }
        }
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // Ends with the listener.
            drop(axum::serve(listener, app).await);
        });
        Ok(Self { address, shared, server })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> String {
        self.shared.lock().metadata.get("instance-id").cloned().unwrap_or_default()
    }

    /// Where all of it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A call for metadata, as a configuration holds it.
    #[must_use]
    pub fn metadata(&self, path: &str) -> HttpCall {
        let url = self.url();
        HttpCall {
            method: "GET".to_owned(),
            url: format!("{url}/latest/meta-data/{path}"),
            headers: BTreeMap::new(),
            body: String::new(),
            token: Some(TokenCall {
                method: "PUT".to_owned(),
                url: format!("{url}/latest/api/token"),
                headers: [("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "60".to_owned())].into(),
                header: "x-aws-ec2-metadata-token".to_owned(),
            }),
            signing: Signing::None,
        }
    }

    /// The call that takes the machine out of its group.
    #[must_use]
    pub fn release(&self) -> HttpCall {
        HttpCall {
            method: "POST".to_owned(),
            url: format!("{}/", self.url()),
            headers: [(
                "content-type".to_owned(),
                "application/x-www-form-urlencoded; charset=utf-8".to_owned(),
            )]
            .into(),
            body: "Action=TerminateInstanceInAutoScalingGroup&InstanceId={machine}\
                   &ShouldDecrementDesiredCapacity=true&Version=2011-01-01"
                .to_owned(),
            token: None,
            signing: Signing::AwsV4 { service: "autoscaling".to_owned(), region: REGION.to_owned() },
        }
    }

    /// Metadata appear.
    pub fn tell(&self, path: &str, value: &str) {
        self.shared.lock().metadata.insert(path.to_owned(), value.to_owned());
    }

    /// The next calls for a token fail.
    pub fn sulk(&self, calls: u32) {
        self.shared.lock().sulks = calls;
    }

    /// The clock by which signatures are judged and answers are dated is put so far ahead.
    pub fn differ(&self, by: SignedDuration) {
        self.shared.lock().clock = by;
    }

    /// No tokens any more: the metadata service is switched off.
    pub fn close(&self) {
        self.shared.lock().closed = true;
    }

    /// Puts an object into the bucket.
    pub fn put(&self, key: &str, content: impl Into<Bytes>) {
        self.shared.lock().bucket.put(key, content.into());
    }

    /// Bodies of the calls that the group answered.
    #[must_use]
    pub fn released(&self) -> Vec<String> {
        self.shared.lock().group.clone()
    }

    /// Everything that was refused, in words.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        self.shared.lock().refusals.clone()
    }

    /// All that was given out and must be found nowhere.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let state = self.shared.lock();
        let of = |c: &Credential| [c.key.clone(), c.secret.clone(), c.token.clone()];
        state.credentials.iter().flat_map(of).chain(state.tokens.all().cloned()).collect()
    }

    /// Identifiers of the credentials that requests were signed with, in order of their first use.
    #[must_use]
    pub fn used(&self) -> Vec<String> {
        self.shared.lock().used.clone()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut state = shared.lock();
    let now = Timestamp::now() + state.clock;
    let mut answer = state.answer(&method, &uri, &headers, body, now);
    if let Ok(date) = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().parse() {
        let _none = answer.headers_mut().insert("date", date);
    }
    answer
}

impl Surroundings {
    fn answer(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        now: Timestamp,
    ) -> Response {
        if let Some(path) = uri.path().strip_prefix("/latest/") {
            let answer = self.metadata(method, path, headers);
            if answer.0 == StatusCode::UNAUTHORIZED || answer.0 == StatusCode::BAD_REQUEST {
                self.refusals.push(format!("{method} {uri}: {}", answer.0));
            }
            return answer.into_response();
        }
        let service = if uri.path() == "/" { "autoscaling" } else { "s3" };
        let request = sigv4::Request {
            method: method.as_str(),
            path: uri.path(),
            query: uri.query().unwrap_or_default(),
            headers,
            body: &body,
        };
        let checked = sigv4::check(&request, &self.credentials, (REGION, service), now);
        match checked {
            Ok(key) => {
                if !self.used.contains(&key) {
                    self.used.push(key);
                }
            }
            Err(refusal) => {
                self.refusals.push(format!("{method} {uri}: {refusal}"));
                let code = match refusal {
                    Refusal::Expired => (StatusCode::BAD_REQUEST, "ExpiredToken"),
                    Refusal::Wrong(_) => (StatusCode::FORBIDDEN, "SignatureDoesNotMatch"),
                };
                return (
                    code.0,
                    format!("<Error><Code>{}</Code><Message>{refusal}</Message></Error>", code.1),
                )
                    .into_response();
            }
        }
        if service == "s3" {
            return self.bucket.answer(method, uri, headers, body);
        }
        self.group.push(String::from_utf8_lossy(&body).into_owned());
        "<TerminateInstanceInAutoScalingGroupResponse/>".into_response()
    }

    fn metadata(&mut self, method: &Method, path: &str, headers: &HeaderMap) -> (StatusCode, String) {
        let plain = |status: StatusCode| (status, String::new());
        if path == "api/token" {
            if self.closed {
                return plain(StatusCode::FORBIDDEN);
            }
            if self.sulks > 0 {
                self.sulks -= 1;
                return plain(StatusCode::SERVICE_UNAVAILABLE);
            }
            return match self.tokens.ask(method, headers) {
                Asked::Given { token, ttl: _ } => (StatusCode::OK, token),
                Asked::Refused(status) => plain(status),
            };
        }
        if !self.tokens.admit(headers) {
            return plain(StatusCode::UNAUTHORIZED);
        }
        if *method != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        let Some(path) = path.strip_prefix("meta-data/") else { return plain(StatusCode::NOT_FOUND) };
        if path.strip_prefix(ROLES) == Some(ROLE) {
            return (StatusCode::OK, self.role());
        }
        match self.metadata.get(path) {
            Some(value) => (StatusCode::OK, value.clone()),
            None => plain(StatusCode::NOT_FOUND),
        }
    }

    /// The current credentials, new ones when an eighth of their time is over.
    fn role(&mut self) -> String {
        let now = Timestamp::now();
        let lifetime = SignedDuration::try_from(self.lifetime).unwrap_or(SignedDuration::MAX);
        let current = self.credentials.last().filter(|c| c.expires.duration_since(now) > lifetime / 8 * 7);
        let current = match current {
            Some(current) => current.clone(),
            None => {
                let random = || hex::encode_upper(rand::random::<[u8; 8]>());
                let fresh = Credential {
                    key: format!("ASIA{}", random()),
                    // All that such a secret may consist of.
                    secret: format!("a+/{}/+z", random()),
                    token: format!("IQoJ/{}+{}==", random(), random()),
                    expires: now + lifetime,
                };
                self.credentials.push(fresh.clone());
                fresh
            }
        };
        serde_json::json!({
            "Code": "Success",
            "LastUpdated": now.to_string(),
            "Type": "AWS-HMAC",
            "AccessKeyId": current.key,
            "SecretAccessKey": current.secret,
            "Token": current.token,
            "Expiration": current.expires.to_string(),
        })
        .to_string()
    }
}
