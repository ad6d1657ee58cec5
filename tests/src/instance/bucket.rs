//! One bucket: as much of S3 as a store needs for small objects.

use std::{collections::BTreeMap, fmt::Write as _};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{BUCKET, sigv4::decode};

#[derive(Default)]
pub(super) struct Bucket {
    objects: BTreeMap<String, Object>,
    /// Objects written so far: no two have the same tag.
    written: u64,
}

struct Object {
    content: Bytes,
    tag: String,
    modified: Timestamp,
    metadata: Vec<(HeaderName, axum::http::HeaderValue)>,
}

fn error(status: StatusCode, code: &str) -> Response {
    (status, format!("<Error><Code>{code}</Code></Error>")).into_response()
}

impl Bucket {
    pub(super) fn put(&mut self, key: &str, content: Bytes) {
        let _tag = self.write(key.to_owned(), content, Vec::new());
    }

    fn write(
        &mut self,
        key: String,
        content: Bytes,
        metadata: Vec<(HeaderName, axum::http::HeaderValue)>,
    ) -> String {
        self.written += 1;
        let hash = Sha256::new().chain_update(&content).chain_update(self.written.to_le_bytes()).finalize();
        let tag = format!("\"{}\"", hex::encode(&hash[..16]));
        let object = Object { content, tag: tag.clone(), modified: Timestamp::now(), metadata };
        drop(self.objects.insert(key, object));
        tag
    }

    pub(super) fn answer(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Response {
        let path = decode(uri.path());
        let path = path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return error(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let query: BTreeMap<String, String> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        if key.is_empty() {
            return match *method {
                Method::GET if query.contains_key("list-type") => self.list(&query),
                Method::POST if query.contains_key("delete") => self.delete(&String::from_utf8_lossy(&body)),
                _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
            };
        }
        match *method {
            Method::GET | Method::HEAD => self.get(key, headers),
            Method::PUT if query.keys().all(String::is_empty) => {
                let found = self.objects.get(key).map(|object| object.tag.as_str());
                let told = |name| headers.get(name).and_then(|v| v.to_str().ok());
                let matches = match (told(header::IF_NONE_MATCH), told(header::IF_MATCH)) {
                    (None, None) => true,
                    (Some("*"), None) => found.is_none(),
                    (None, Some(tag)) => match found {
                        Some(found) => found == tag,
                        None => return error(StatusCode::NOT_FOUND, "NoSuchKey"),
                    },
                    _ => return error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
                };
                if !matches {
                    return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
                }
                let own = |name: &HeaderName| name.as_str().starts_with("x-amz-meta-");
                let metadata = headers.iter().filter(|(name, _)| own(name));
                let metadata = metadata.map(|(name, value)| (name.clone(), value.clone())).collect();
                let tag = self.write(key.to_owned(), body, metadata);
                [(header::ETAG, tag)].into_response()
            }
            Method::DELETE => {
                drop(self.objects.remove(key));
                StatusCode::NO_CONTENT.into_response()
            }
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn get(&self, key: &str, headers: &HeaderMap) -> Response {
        let Some(object) = self.objects.get(key) else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
        let modified = object.modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let common = [(header::ETAG, object.tag.clone()), (header::LAST_MODIFIED, modified)];
        let length = object.content.len();
        let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok()?.strip_prefix("bytes="));
        let mut response = match range.and_then(|range| range.split_once('-')) {
            None => (common, object.content.clone()).into_response(),
            Some((from, to)) => {
                let from: usize = from.parse().unwrap_or(0);
                let to = to.parse::<usize>().map_or(length, |to| (to + 1).min(length));
                if from >= to {
                    return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
                }
                let told = [(header::CONTENT_RANGE, format!("bytes {from}-{}/{length}", to - 1))];
                (StatusCode::PARTIAL_CONTENT, common, told, object.content.slice(from..to)).into_response()
            }
        };
        for (name, value) in &object.metadata {
            let _none = response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Response {
        let told = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let (prefix, delimiter, after) = (told("prefix"), told("delimiter"), told("start-after"));
        // Writing to a string cannot fail.
        let mut contents = String::new();
        let mut folders = std::collections::BTreeSet::new();
        for (key, object) in self.objects.iter().filter(|(key, _)| key.as_str() > after) {
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((folder, _)) => {
                    let _new = folders.insert(format!("{prefix}{folder}{delimiter}"));
                }
                None => {
                    let _ = write!(
                        contents,
                        "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>{}</ETag>\
                         <Size>{}</Size></Contents>",
                        object.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                        object.tag.replace('"', "&quot;"),
                        object.content.len()
                    );
                }
            }
        }
        for folder in folders {
            let _ = write!(contents, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
        }
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>")
            .into_response()
    }

    fn delete(&mut self, body: &str) -> Response {
        let mut deleted = String::new();
        for part in body.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap_or_default();
            drop(self.objects.remove(key));
            let _ = write!(deleted, "<Deleted><Key>{key}</Key></Deleted>");
        }
        format!("<DeleteResult>{deleted}</DeleteResult>").into_response()
    }
}
