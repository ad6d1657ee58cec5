//! An instance's metadata service, version 2 only: no answer without a token.
//!
//! Differs from AWS: it answers under versions of the interface that cloud-init asks for and `latest`; there are no
//! tags, public keys, product codes or identity signatures in it. A machine's identity document is not signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::State as Shared,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;

use super::Account;
use crate::{
    instance::tokens::{Asked, Tokens},
    sim::front::{ACCOUNT, Instance},
};

/// Versions of the interface, of which the last is whatever is newest.
const VERSIONS: [&str; 5] = ["2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest"];
const CREDENTIALS: &str = "iam/security-credentials/";

/// What an instance can find out about itself.
pub(super) struct Metadata {
    instance: Instance,
    account: Arc<dyn Account>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens: Tokens,
    /// Below `meta-data/`.
    facts: BTreeMap<String, String>,
    refusals: Vec<String>,
}

/// Answers until it is dropped.
pub(super) struct Served(Option<tokio::task::JoinHandle<()>>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Metadata {
    pub(super) fn of(instance: Instance, account: Arc<dyn Account>) -> Self {
        let state = State { facts: facts(&instance), ..State::default() };
        Self { instance, account, state: Mutex::new(state) }
    }

    /// Where the machine has been put.
    pub(super) fn place(&self, address: Ipv4Addr, mac: &str) {
        let name = format!("ip-{}", address.to_string().replace('.', "-"));
        let interface = format!("network/interfaces/macs/{mac}");
        let text = address.to_string();
        for (path, value) in [
            ("local-ipv4", text.as_str()),
            ("public-ipv4", &text),
            ("local-hostname", &format!("{name}.{}.compute.internal", self.instance.region)),
            ("hostname", &format!("{name}.{}.compute.internal", self.instance.region)),
            ("public-hostname", &format!("{name}.{}.compute.amazonaws.com", self.instance.region)),
            ("mac", mac),
            (&format!("{interface}/device-number"), "0"),
            (&format!("{interface}/local-ipv4s"), &text),
            (&format!("{interface}/public-ipv4s"), &text),
            (&format!("{interface}/mac"), mac),
            (&format!("{interface}/vpc-id"), "vpc-0123456789abcdef0"),
        ] {
            self.tell(path, value);
        }
    }

    /// A fact appears, or changes.
    pub(super) fn tell(&self, path: &str, value: &str) {
        drop(self.lock().facts.insert(path.to_owned(), value.to_owned()));
    }

    pub(super) fn refusals(&self) -> Vec<String> {
        self.lock().refusals.clone()
    }

    /// Answers at a listener.
    pub(super) fn serve(self: &Arc<Self>, listener: tokio::net::TcpListener) -> Served {
        let app = Router::new().fallback(answer).with_state(Arc::clone(self));
        Served(Some(tokio::spawn(async move {
            // Ends when it is aborted.
            drop(axum::serve(listener, app).await);
        })))
    }

    /// Switched off for this instance.
    pub(super) fn none(&self) -> Served {
        Served(None)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, what: impl std::fmt::Display) {
        self.lock().refusals.push(format!("metadata of {}: {what}", self.instance.id));
    }

    async fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
        let path = uri.path().trim_start_matches('/');
        if path == "latest/api/token" {
            let asked = self.lock().tokens.ask(method, headers);
            return match asked {
                Asked::Given { token, ttl } => {
                    ([("x-aws-ec2-metadata-token-ttl-seconds", ttl.to_string())], token).into_response()
                }
                Asked::Refused(status) => {
                    self.refuse(format_args!("{method} {uri}: {status}"));
                    status.into_response()
                }
            };
        }
        if !self.lock().tokens.admit(headers) {
            self.refuse(format_args!("{method} {uri} without a token"));
            return StatusCode::UNAUTHORIZED.into_response();
        }
        if *method != Method::GET && *method != Method::HEAD {
            return StatusCode::METHOD_NOT_ALLOWED.into_response();
        }
        let (version, rest) = path.split_once('/').unwrap_or((path, ""));
        if path.is_empty() {
            return VERSIONS.join("\n").into_response();
        }
        if !VERSIONS.contains(&version) {
            return StatusCode::NOT_FOUND.into_response();
        }
        let plain = [(header::CONTENT_TYPE, "text/plain")];
        match rest {
            "" => (plain, "dynamic\nmeta-data\nuser-data").into_response(),
            "user-data" if self.instance.user_data.is_empty() => StatusCode::NOT_FOUND.into_response(),
            "user-data" => {
                ([(header::CONTENT_TYPE, "application/octet-stream")], self.instance.user_data.clone())
                    .into_response()
            }
            "dynamic" | "dynamic/" => (plain, "instance-identity/").into_response(),
            "dynamic/instance-identity" | "dynamic/instance-identity/" => (plain, "document").into_response(),
            "dynamic/instance-identity/document" => (plain, self.document()).into_response(),
            _ => match rest.strip_prefix("meta-data").map(|rest| rest.trim_start_matches('/')) {
                Some(path) => self.fact(path).await,
                None => StatusCode::NOT_FOUND.into_response(),
            },
        }
    }

    async fn fact(&self, path: &str) -> Response {
        let plain = [(header::CONTENT_TYPE, "text/plain")];
        if let (Some(name), Some(role)) = (path.strip_prefix(CREDENTIALS), &self.instance.role)
            && name == role
        {
            return match self.account.credentials(&self.instance).await {
                Ok(given) => {
                    let document = serde_json::json!({
                        "Code": "Success",
                        "LastUpdated": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                        "Type": "AWS-HMAC",
                        "AccessKeyId": given.access_key,
                        "SecretAccessKey": given.secret_key,
                        "Token": given.token,
                        "Expiration": given.expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    });
                    (plain, document.to_string()).into_response()
                }
                Err(error) => {
                    self.refuse(format_args!("credentials of {role}: {error:#}"));
                    StatusCode::NOT_FOUND.into_response()
                }
            };
        }
        let state = self.lock();
        if let Some(value) = state.facts.get(path) {
            return (plain, value.clone()).into_response();
        }
        let folder =
            if path.is_empty() || path.ends_with('/') { path.to_owned() } else { format!("{path}/") };
        let entries: BTreeSet<&str> = state
            .facts
            .range(folder.clone()..)
            .map_while(|(path, _)| path.strip_prefix(&folder))
            .map(|rest| rest.split_inclusive('/').next().unwrap_or(rest))
            .collect();
        if entries.is_empty() {
            return StatusCode::NOT_FOUND.into_response();
        }
        let entries: Vec<&str> = entries.into_iter().collect();
        (plain, entries.join("\n")).into_response()
    }

    fn document(&self) -> String {
        let instance = &self.instance;
        let address = self.lock().facts.get("local-ipv4").cloned();
        serde_json::json!({
            "accountId": ACCOUNT,
            "architecture": "x86_64",
            "availabilityZone": instance.zone,
            "imageId": instance.image,
            "instanceId": instance.id,
            "instanceType": instance.kind,
            "pendingTime": instance.launched.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "privateIp": address,
            "region": instance.region,
            "version": "2017-09-30",
        })
        .to_string()
    }
}

async fn answer(
    Shared(metadata): Shared<Arc<Metadata>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    metadata.answer(&method, &uri, &headers).await
}

fn facts(instance: &Instance) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, String> = [
        ("ami-id", instance.image.as_str()),
        ("ami-launch-index", "0"),
        ("ami-manifest-path", "(unknown)"),
        ("block-device-mapping/ami", "/dev/sda1"),
        ("block-device-mapping/root", "/dev/sda1"),
        ("instance-action", "none"),
        ("instance-id", &instance.id),
        ("instance-life-cycle", if instance.spot { "spot" } else { "on-demand" }),
        ("instance-type", &instance.kind),
        ("placement/availability-zone", &instance.zone),
        ("placement/region", &instance.region),
        ("profile", "default-hvm"),
        ("reservation-id", "r-0123456789abcdef0"),
        ("services/domain", "amazonaws.com"),
        ("services/partition", "aws"),
    ]
    .map(|(path, value)| (path.to_owned(), value.to_owned()))
    .into();
    if let Some(role) = &instance.role {
        let profile = instance.profile.as_deref().unwrap_or(role);
        let info = serde_json::json!({
            "Code": "Success",
            "LastUpdated": instance.launched.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "InstanceProfileArn": format!("arn:aws:iam::{ACCOUNT}:instance-profile/{profile}"),
            "InstanceProfileId": "AIPA0123456789ABCDEFG",
        });
        drop(facts.insert("iam/info".to_owned(), info.to_string()));
        // Its value is made anew for each who asks.
        drop(facts.insert(format!("{CREDENTIALS}{role}"), String::new()));
    }
    facts
}
