//! AWS Signature Version 4, from the side that checks it. Written from the published description and apart from what
//! the product signs with.

use std::{collections::BTreeSet, fmt};

use axum::http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

/// Credentials that were given out.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Identifier.
    pub key: String,
    /// Never sent.
    pub secret: String,
    /// Sent with each request; empty: none is.
    pub token: String,
    /// Until when.
    pub expires: Timestamp,
}

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Method.
    pub method: &'a str,
    /// As it was sent.
    pub path: &'a str,
    /// As it was sent, without `?`.
    pub query: &'a str,
    /// All.
    pub headers: &'a HeaderMap,
    /// Whole.
    pub body: &'a [u8],
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The credentials were good once.
    Expired,
    /// Anything else, in words.
    Wrong(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("the credentials have expired"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Wrong(what.into()))
}

/// Whether the request is signed as it must be, for that region and service; the identifier of the credentials.
pub fn check(
    request: &Request<'_>,
    known: &[Credential],
    (region, service): (&str, &str),
    now: Timestamp,
) -> Result<String, Refusal> {
    let header = |name: &str| header_of(request.headers, name);
    let authorization = header("authorization")?;
    let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else {
        return wrong("not AWS4-HMAC-SHA256");
    };
    let field = |name: &str| {
        let found = fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
        found.map_or_else(|| wrong(format!("there is no {name}")), Ok)
    };
    let (key, scope) = match field("Credential")?.split_once('/') {
        Some(parts) => parts,
        None => return wrong("no scope"),
    };
    let date = header("x-amz-date")?;
    let day = date.get(..8).unwrap_or_default();
    if scope != format!("{day}/{region}/{service}/aws4_request") {
        return wrong(format!("the scope is {scope}"));
    }
    let Some(credential) = known.iter().find(|c| c.key == key) else { return wrong("the key is not known") };
    if !credential.token.is_empty() && header("x-amz-security-token")? != credential.token {
        return wrong("the session's token is another's");
    }
    match time_of(date) {
        Some(time) if time.duration_since(now).abs() <= SignedDuration::from_mins(5) => {}
        Some(_) => return wrong("the time is off"),
        None => return wrong("the time is none"),
    }
    let names: Vec<&str> = field("SignedHeaders")?.split(';').collect();
    let sorted: Vec<&str> = names.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    if names != sorted {
        return wrong("the signed headers are not sorted");
    }
    let must = |name: &str| name == "host" || name == "content-type" || name.starts_with("x-amz-");
    if let Some(name) =
        request.headers.keys().find(|name| must(name.as_str()) && !names.contains(&name.as_str()))
    {
        return wrong(format!("{name} is not signed"));
    }
    let hash = hex::encode(Sha256::digest(request.body));
    // S3 wants to be told; others compute it.
    if service == "s3" || request.headers.contains_key("x-amz-content-sha256") {
        let told = header("x-amz-content-sha256")?;
        if told != hash {
            return wrong(format!("the body is not what was signed ({told})"));
        }
    }
    let signature = signature(request, &names, request.query, &hash, (date, scope), &credential.secret)?;
    if field("Signature")? != signature {
        return wrong("the signature does not match");
    }
    if credential.expires <= now { Err(Refusal::Expired) } else { Ok(key.to_owned()) }
}

/// What the signature has to be.
fn signature(
    request: &Request<'_>,
    names: &[&str],
    query: &str,
    hash: &str,
    (date, scope): (&str, &str),
    secret: &str,
) -> Result<String, Refusal> {
    let mut canonical = String::new();
    for name in names {
        let value = header_of(request.headers, name)?.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        canonical.extend([name, ":", &value, "\n"]);
    }
    let s3 = scope.ends_with("/s3/aws4_request");
    let path = if s3 { encode(&decode(request.path), true) } else { encode(request.path, true) };
    let text = [request.method, &path, &sorted(query), &canonical, &names.join(";"), hash].join("\n");
    let text = ["AWS4-HMAC-SHA256", date, scope, &hex::encode(Sha256::digest(text))].join("\n");
    let mut signing = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/').chain([text.as_str()]) {
        signing = hmac(&signing, part.as_bytes());
    }
    Ok(hex::encode(signing))
}

/// Longest time that a presigned request may be good for.
const PRESIGNED_MAX: i64 = 7 * 24 * 3600;

/// The same of a request that has its signature in its address, as links to objects have.
pub fn check_presigned(
    request: &Request<'_>,
    known: &[Credential],
    (region, service): (&str, &str),
    now: Timestamp,
) -> Result<String, Refusal> {
    let told = |name: &str| {
        let mut values =
            request.query.split('&').filter_map(|pair| pair.split_once('=')).filter(|p| p.0 == name);
        match (values.next(), values.next()) {
            (Some((_, value)), None) => Ok(decode(value)),
            (None, _) => wrong(format!("there is no {name}")),
            (Some(_), Some(_)) => wrong(format!("{name} is there more than once")),
        }
    };
    if service != "s3" {
        return wrong("only links to objects are signed so");
    }
    if told("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return wrong("not AWS4-HMAC-SHA256");
    }
    let (credential, date) = (told("X-Amz-Credential")?, told("X-Amz-Date")?);
    let Some((key, scope)) = credential.split_once('/') else { return wrong("no scope") };
    let day = date.get(..8).unwrap_or_default();
    if scope != format!("{day}/{region}/{service}/aws4_request") {
        return wrong(format!("the scope is {scope}"));
    }
    let Some(credential) = known.iter().find(|c| c.key == key) else { return wrong("the key is not known") };
    if !credential.token.is_empty() && told("X-Amz-Security-Token")? != credential.token {
        return wrong("the session's token is another's");
    }
    let names = told("X-Amz-SignedHeaders")?;
    let names: Vec<&str> = names.split(';').collect();
    let unsigned = |name: &str| name.starts_with("x-amz-") && !names.contains(&name);
    if !names.contains(&"host") || request.headers.keys().any(|name| unsigned(name.as_str())) {
        return wrong("a header is not signed");
    }
    let query: Vec<&str> =
        request.query.split('&').filter(|pair| !pair.starts_with("X-Amz-Signature=")).collect();
    let hash = header_of(request.headers, "x-amz-content-sha256").unwrap_or("UNSIGNED-PAYLOAD");
    let signature = signature(request, &names, &query.join("&"), hash, (&date, scope), &credential.secret)?;
    if told("X-Amz-Signature")? != signature {
        return wrong("the signature does not match");
    }
    let Some(time) = time_of(&date) else { return wrong("the time is none") };
    let Some(seconds) = told("X-Amz-Expires")?.parse().ok().filter(|s| (1..=PRESIGNED_MAX).contains(s))
    else {
        return wrong("X-Amz-Expires is not between a second and a week");
    };
    if time.duration_since(now) > SignedDuration::from_mins(5) {
        return wrong("the time is off");
    }
    let over = now.duration_since(time) >= SignedDuration::from_secs(seconds) || credential.expires <= now;
    if over { Err(Refusal::Expired) } else { Ok(key.to_owned()) }
}

/// The header that signs a request with all the headers that it has, which are to include `host` and `x-amz-date`:
/// for tests that ask by themselves.
pub fn authorization(
    request: &Request<'_>,
    credential: &Credential,
    (region, service): (&str, &str),
) -> Result<String, Refusal> {
    let date = header_of(request.headers, "x-amz-date")?;
    let scope = format!("{}/{region}/{service}/aws4_request", date.get(..8).unwrap_or_default());
    let names: BTreeSet<&str> = request.headers.keys().map(axum::http::HeaderName::as_str).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let hash = hex::encode(Sha256::digest(request.body));
    let signature = signature(request, &names, request.query, &hash, (date, &scope), &credential.secret)?;
    Ok(format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
        credential.key,
        names.join(";")
    ))
}

/// The query of a link to an object of S3 that is good for so many seconds.
pub fn presigned(
    (method, host, path): (&str, &str, &str),
    credential: &Credential,
    region: &str,
    (time, seconds): (Timestamp, u32),
) -> Result<String, Refusal> {
    let date = time.strftime("%Y%m%dT%H%M%SZ").to_string();
    let scope = format!("{}/{region}/s3/aws4_request", date.get(..8).unwrap_or_default());
    let mut query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={date}&X-Amz-Expires={seconds}\
         &X-Amz-SignedHeaders=host",
        encode(&format!("{}/{scope}", credential.key), false)
    );
    if !credential.token.is_empty() {
        query.push_str("&X-Amz-Security-Token=");
        query.push_str(&encode(&credential.token, false));
    }
    let mut headers = HeaderMap::new();
    let Ok(host) = host.parse() else { return wrong("the host is no header") };
    let _none = headers.insert("host", host);
    let request = Request { method, path, query: &query, headers: &headers, body: b"" };
    let hash = "UNSIGNED-PAYLOAD";
    let signature = signature(&request, &["host"], &query, hash, (&date, &scope), &credential.secret)?;
    Ok(format!("{query}&X-Amz-Signature={signature}"))
}

fn header_of<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    match headers.get_all(name).iter().collect::<Vec<_>>().as_slice() {
        [value] => value.to_str().map(str::trim).or_else(|_| wrong(format!("{name} is not text"))),
        [] => wrong(format!("there is no {name}")),
        _ => wrong(format!("{name} is there more than once")),
    }
}

fn time_of(date: &str) -> Option<Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(time).ok()
}

fn sorted(text: &str) -> String {
    let mut pairs: Vec<(String, String)> = text
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(&decode(name), false), encode(&decode(value), false)))
        .collect();
    pairs.sort();
    pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Percent-decoding.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn encode(text: &str, path: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (path && b == b'/');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// RFC 2104, for keys up to a block (64 bytes) and longer ones.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    let short = if key.len() > block.len() { Sha256::digest(key).to_vec() } else { key.to_vec() };
    for (to, from) in block.iter_mut().zip(&short) {
        *to = *from;
    }
    let pad = |with: u8| block.map(|b| b ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector {
        method: &'static str,
        path: &'static str,
        query: &'static str,
        scope: (&'static str, &'static str),
        key: (&'static str, &'static str),
        headers: &'static [(&'static str, &'static str)],
        authorization: &'static str,
    }

    /// AWS's published examples: "get-vanilla" of the test suite, IAM's ListUsers and S3's GetObject of the guides.
    const VECTORS: [Vector; 3] = [
        Vector {
            method: "GET",
            path: "/",
            query: "",
            scope: ("us-east-1", "service"),
            key: ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            headers: &[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")],
            authorization: "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                SignedHeaders=host;x-amz-date, \
                Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        },
        Vector {
            method: "GET",
            path: "/",
            query: "Action=ListUsers&Version=2010-05-08",
            scope: ("us-east-1", "iam"),
            key: ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            headers: &[
                ("host", "iam.amazonaws.com"),
                ("x-amz-date", "20150830T123600Z"),
                ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ],
            authorization: "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                SignedHeaders=content-type;host;x-amz-date, \
                Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        },
        Vector {
            method: "GET",
            path: "/test.txt",
            query: "",
            scope: ("us-east-1", "s3"),
            key: ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            headers: &[
                ("host", "examplebucket.s3.amazonaws.com"),
                ("x-amz-date", "20130524T000000Z"),
                ("range", "bytes=0-9"),
                ("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ],
            authorization: "AWS4-HMAC-SHA256 \
                Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
                SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
                Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        },
    ];

    fn checked(
        vector: &Vector,
        later: SignedDuration,
        change: impl FnOnce(&mut HeaderMap),
    ) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in vector.headers.iter().chain([&("authorization", vector.authorization)]) {
            headers.append(*name, value.parse().expect("a value"));
        }
        let date = headers.get("x-amz-date").expect("there is one").to_str().expect("text").to_owned();
        change(&mut headers);
        let time = time_of(&date).expect("a time");
        let credential = Credential {
            key: vector.key.0.to_owned(),
            secret: vector.key.1.to_owned(),
            token: String::new(),
            expires: time + SignedDuration::from_mins(2),
        };
        let request = Request {
            method: vector.method,
            path: vector.path,
            query: vector.query,
            headers: &headers,
            body: b"",
        };
        check(&request, &[credential], vector.scope, time + later)
    }

    #[test]
    fn the_published_signatures_are_right() {
        for vector in &VECTORS {
            assert_eq!(checked(vector, SignedDuration::ZERO, |_| {}), Ok(vector.key.0.to_owned()));
        }
    }

    /// The guide's example of a link to an object.
    #[test]
    fn a_published_link_is_right_until_it_is_over() {
        let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256\
            &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
            &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
            &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        let mut headers = HeaderMap::new();
        headers.append("host", "examplebucket.s3.amazonaws.com".parse().expect("a value"));
        let begun = time_of("20130524T000000Z").expect("a time");
        let credential = Credential {
            key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: String::new(),
            expires: Timestamp::MAX,
        };
        let checked = |path: &str, hours| {
            let request = Request { method: "GET", path, query, headers: &headers, body: b"" };
            let now = begun + SignedDuration::from_hours(hours);
            check_presigned(&request, std::slice::from_ref(&credential), ("us-east-1", "s3"), now)
        };
        assert_eq!(checked("/test.txt", 23), Ok(credential.key.clone()));
        assert_eq!(checked("/test.txt", 24), Err(Refusal::Expired));
        assert!(matches!(checked("/other.txt", 1), Err(Refusal::Wrong(_))));
    }

    #[test]
    fn others_are_not() {
        let [_, _, s3] = &VECTORS;
        assert_eq!(checked(s3, SignedDuration::from_mins(3), |_| {}), Err(Refusal::Expired));
        let refused = |later, change: fn(&mut HeaderMap)| match checked(s3, later, change) {
            Err(Refusal::Wrong(what)) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(SignedDuration::from_mins(10), |_| {}), "the time is off");
        let range: fn(&mut HeaderMap) = |h| drop(h.insert("range", "bytes=0-8".parse().expect("a value")));
        assert_eq!(refused(SignedDuration::ZERO, range), "the signature does not match");
        let more: fn(&mut HeaderMap) =
            |h| drop(h.insert("x-amz-acl", "public-read".parse().expect("a value")));
        assert_eq!(refused(SignedDuration::ZERO, more), "x-amz-acl is not signed");
        let none: fn(&mut HeaderMap) = |h| drop(h.remove("authorization"));
        assert_eq!(refused(SignedDuration::ZERO, none), "there is no authorization");
    }
}
