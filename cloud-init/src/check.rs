//! What may not be in user-data: values that break out of their place, and secrets.

use tpi_proto::machine::{Addresses, Credentials, HttpCall, MachineName};
use url::Url;

use crate::{AgentSource, Bootstrap, RenderError};

pub(crate) fn bootstrap(bootstrap: &Bootstrap) -> Result<(), RenderError> {
    let config = &bootstrap.config;
    text("agent_sha256", &bootstrap.agent_sha256, |c| matches!(c, '0'..='9' | 'a'..='f'))?;
    if bootstrap.agent_sha256.len() != 64 {
        return Err(invalid("agent_sha256", "not 64 hexadecimal digits"));
    }
    let AgentSource::S3 { bucket, key, region, endpoint, metadata } = &bootstrap.agent;
    text("agent.bucket", bucket, |c| c.is_ascii_alphanumeric() || ".-_".contains(c))?;
    // What needs no escaping in an address or a signature.
    text("agent.key", key, |c| c.is_ascii_alphanumeric() || "/.-_~".contains(c))?;
    text("agent.region", region, |c| c.is_ascii_alphanumeric() || c == '-')?;
    if key.starts_with('/') || key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(invalid("agent.key", "not a plain path"));
    }
    for (field, url) in [("agent.endpoint", endpoint), ("agent.metadata", metadata)] {
        url.as_ref().map_or(Ok(()), |url| service(field, url))?;
    }
    if bootstrap.power_off.at < config.deadline {
        return Err(invalid("power_off.at", "before the deadline"));
    }
    if bootstrap.power_off.after_boot_seconds == 0 {
        return Err(invalid("power_off.after_boot_seconds", "zero"));
    }
    if bootstrap.power_off.at.to_string().starts_with(['-', '+']) {
        return Err(invalid("power_off.at", "not a date of this era"));
    }
    if let Credentials::AwsInstance { endpoint, store_endpoint, .. } = &config.credentials {
        for url in [endpoint, store_endpoint].into_iter().flatten() {
            service("config.credentials", url)?;
        }
    }
    open("config.store", config.store.as_str())?;
    if let MachineName::Ask { ask } = &config.machine {
        call("config.machine", ask)?;
    }
    for notice in &config.preemption {
        call("config.preemption", &notice.call)?;
    }
    config.release.as_ref().map_or(Ok(()), |release| call("config.release", release))?;
    match &config.addresses {
        Addresses::Static { .. } => Ok(()),
        Addresses::Metadata { calls } => calls.iter().try_for_each(|ask| call("config.addresses", ask)),
    }
}

fn invalid(field: &'static str, cause: impl Into<String>) -> RenderError {
    RenderError::Invalid { field, cause: cause.into() }
}

fn text(field: &'static str, value: &str, may: impl Fn(char) -> bool) -> Result<(), RenderError> {
    match value.chars().find(|c| !may(*c)) {
        Some(bad) => Err(invalid(field, format!("{bad:?} in {value:?}"))),
        None if value.is_empty() => Err(invalid(field, "empty")),
        None => Ok(()),
    }
}

/// The address of a service: it is put in quotes, and a path is put behind it.
fn service(field: &'static str, url: &Url) -> Result<(), RenderError> {
    let plain = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !plain || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(field, "not the address of a service"));
    }
    open(field, url.as_str())?;
    text(field, url.as_str(), |c| c.is_ascii_alphanumeric() || ":/.-_~[]".contains(c))
}

/// A call that everybody on the machine may read.
fn call(field: &'static str, call: &HttpCall) -> Result<(), RenderError> {
    let token = call.token.iter();
    for name in call.headers.keys().chain(token.clone().flat_map(|token| token.headers.keys())) {
        if ["authorization", "proxy-authorization", "cookie"].contains(&name.to_ascii_lowercase().as_str()) {
            return Err(invalid(field, format!("the header {name:?} is a secret")));
        }
    }
    open(field, &call.url)?;
    token.map(|token| token.url.as_str()).try_for_each(|url| open(field, url))
}

/// An address without a password and without a signature of somebody.
fn open(field: &'static str, address: &str) -> Result<(), RenderError> {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = host.split(['/', '?', '#']).next().unwrap_or(host);
    let signed = ["x-amz-signature=", "x-amz-credential=", "x-goog-signature=", "sig="];
    let lower = address.to_ascii_lowercase();
    if host.contains('@') || signed.iter().any(|sign| lower.contains(sign)) {
        return Err(invalid(field, "an address with a secret in it"));
    }
    Ok(())
}

/// The last look: keys have forms that nothing else has.
pub(crate) fn no_secret(text: &str) -> Result<(), RenderError> {
    let secret = |what: &str| Err(invalid("user-data", format!("there is {what} in it")));
    if text.contains("PRIVATE KEY-----") {
        return secret("a private key");
    }
    for prefix in ["AKIA", "ASIA"] {
        for (at, _) in text.match_indices(prefix) {
            let rest = text.get(at + prefix.len()..).unwrap_or_default();
            let length = rest.bytes().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit()).count();
            if length >= 12 {
                return secret("an access key of AWS");
            }
        }
    }
    Ok(())
}
