//! What a request asks for, in the words of policies.

use http::Method;

use super::{form::Form, http::Request};
use crate::instance::sigv4::decode;

/// A request that was understood.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// As signed for: `ec2`.
    pub(super) service: String,
    pub(super) region: String,
    /// `RunInstances`, `GetObject`.
    pub(super) action: String,
    /// Of the query protocol; empty for others.
    pub(super) form: Form,
    /// Of the JSON protocol; null for others.
    pub(super) json: serde_json::Value,
    /// Of S3.
    pub(super) bucket: String,
    /// Of S3; empty when it is about the bucket.
    pub(super) key: String,
    /// Parameters in the address.
    pub(super) query: Form,
}

/// Key, date, region and service of the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) key: String,
    pub(super) day: String,
    pub(super) region: String,
    pub(super) service: String,
    /// In the address, not in a header.
    pub(super) presigned: bool,
}

impl Scope {
    pub(super) fn of(request: &Request) -> Option<Self> {
        let query = Form::parse(&request.query);
        let (text, presigned) = match request.header("authorization") {
            Some(header) => {
                let (_, rest) = header.split_once("Credential=")?;
                (rest.split(',').next()?.trim().to_owned(), false)
            }
            None => (query.get("X-Amz-Credential")?.to_owned(), true),
        };
        let parts: Vec<&str> = text.split('/').collect();
        let [key, day, region, service, "aws4_request"] = parts.as_slice() else { return None };
        Some(Self {
            key: (*key).to_owned(),
            day: (*day).to_owned(),
            region: (*region).to_owned(),
            service: (*service).to_owned(),
            presigned,
        })
    }
}

impl Asked {
    pub(super) fn of(request: &Request, scope: Option<&Scope>) -> Self {
        let query = Form::parse(&request.query);
        // Who does not sign is taken to mean a bucket.
        let service = scope.map_or("s3", |s| s.service.as_str()).to_owned();
        let region = scope.map(|s| s.region.clone()).unwrap_or_default();
        let asked = Self { service, region, query, ..Self::default() };
        match asked.service.as_str() {
            "s3" => asked.of_s3(request),
            _ => asked.of_others(request),
        }
    }

    fn of_others(mut self, request: &Request) -> Self {
        if let Some(target) = request.header("x-amz-target") {
            self.action = target.rsplit('.').next().unwrap_or_default().to_owned();
            self.json = serde_json::from_slice(&request.body).unwrap_or_default();
            return self;
        }
        let body = String::from_utf8_lossy(&request.body);
        self.form = Form::parse(if body.is_empty() { &request.query } else { &body });
        self.form.text("Action").clone_into(&mut self.action);
        self
    }

    fn of_s3(mut self, request: &Request) -> Self {
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        (self.bucket, self.key) = (decode(bucket), decode(key));
        let has = |name: &str| self.query.get(name).is_some();
        let about = [
            "acl",
            "cors",
            "encryption",
            "lifecycle",
            "location",
            "notification",
            "object-lock",
            "ownershipControls",
            "policy",
            "publicAccessBlock",
            "replication",
            "tagging",
            "versioning",
            "versions",
            "website",
            "logging",
            "attributes",
            "torrent",
            "restore",
            "select",
        ];
        let about = about.into_iter().find(|name| has(name));
        let of = |get: &'static str, put: &'static str, delete: &'static str| match request.method {
            Method::GET | Method::HEAD => get,
            Method::PUT => put,
            Method::DELETE => delete,
            _ => "Unknown",
        };
        let action = if self.bucket.is_empty() {
            of("ListAllMyBuckets", "Unknown", "Unknown")
        } else if self.key.is_empty() {
            match about {
                Some("location") => of("GetBucketLocation", "Unknown", "Unknown"),
                Some("lifecycle") => {
                    of("GetLifecycleConfiguration", "PutLifecycleConfiguration", "PutLifecycleConfiguration")
                }
                Some("encryption") => of(
                    "GetEncryptionConfiguration",
                    "PutEncryptionConfiguration",
                    "PutEncryptionConfiguration",
                ),
                Some("publicAccessBlock") => of(
                    "GetBucketPublicAccessBlock",
                    "PutBucketPublicAccessBlock",
                    "PutBucketPublicAccessBlock",
                ),
                Some("versioning") => of("GetBucketVersioning", "PutBucketVersioning", "Unknown"),
                Some("versions") => of("ListBucketVersions", "Unknown", "Unknown"),
                Some("tagging") => of("GetBucketTagging", "PutBucketTagging", "PutBucketTagging"),
                Some("policy") => of("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy"),
                Some("acl") => of("GetBucketAcl", "PutBucketAcl", "Unknown"),
                Some("ownershipControls") => of(
                    "GetBucketOwnershipControls",
                    "PutBucketOwnershipControls",
                    "PutBucketOwnershipControls",
                ),
                Some(_) => "Unknown",
                None if has("uploads") => of("ListBucketMultipartUploads", "Unknown", "Unknown"),
                None if has("delete") && request.method == Method::POST => "DeleteObjects",
                None => of("ListBucket", "CreateBucket", "DeleteBucket"),
            }
        } else {
            match about {
                Some("tagging") => of("GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging"),
                Some("acl") => of("GetObjectAcl", "PutObjectAcl", "Unknown"),
                Some("attributes") => of("GetObjectAttributes", "Unknown", "Unknown"),
                Some(_) => "Unknown",
                None if request.method == Method::POST && (has("uploads") || has("uploadId")) => "PutObject",
                None if has("uploadId") => {
                    of("ListMultipartUploadParts", "PutObject", "AbortMultipartUpload")
                }
                None => of("GetObject", "PutObject", "DeleteObject"),
            }
        };
        action.clone_into(&mut self.action);
        self
    }

    /// Bucket and key.
    pub(super) fn resource(&self) -> String {
        if self.key.is_empty() { self.bucket.clone() } else { format!("{}/{}", self.bucket, self.key) }
    }
}
