//! Signing requests to other services of the place where the bucket is, with the credentials that reach the bucket.

use object_store::{aws::AwsAuthorizer, client::HttpRequestBody};

use super::{StoreError, StoreErrorKind, s3};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A request about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Unsigned<'a> {
    /// `GET`, `POST`…
    pub method: &'a str,
    /// Where to, complete.
    pub url: &'a str,
    /// Those that will be sent; all are signed.
    pub headers: &'a [(String, String)],
    /// The whole body.
    pub body: &'a str,
}

/// The headers that make a request AWS's (Signature Version 4), to be sent besides its own. `settings` are those of
/// [`Store::open_with`](super::Store::open_with). Credentials are fetched for this one request, so they are never stale.
///
/// # Errors
/// `Unauthenticated` when no credentials can be had, `Unsupported` when the request is none.
pub async fn sign_aws_v4(
    settings: impl IntoIterator<Item = (String, String)>,
    service: &str,
    region: &str,
    request: Unsigned<'_>,
) -> Result<Vec<(String, String)>, StoreError> {
    let fail = |kind, source: Source| StoreError::new(kind, "signing a request to", request.url, source);
    // The client is only asked for its credentials; the bucket's name goes nowhere.
    let client =
        s3::open("credentials", settings, None).map_err(|e| fail(StoreErrorKind::Unsupported, e.into()))?;
    let credential = client.credentials().get_credential().await;
    let credential = credential.map_err(|e| fail(StoreErrorKind::Unauthenticated, e.into()))?;
    let mut signed = http::Request::builder().method(request.method).uri(request.url);
    for (name, value) in request.headers {
        signed = signed.header(name, value);
    }
    let mut signed = signed
        .body(HttpRequestBody::from(request.body.to_owned()))
        .map_err(|e| fail(StoreErrorKind::Unsupported, e.into()))?;
    let own: Vec<_> = signed.headers().keys().cloned().collect();
    AwsAuthorizer::new(&credential, service, region)
        .try_authorize(&mut signed, None)
        .map_err(|e| fail(StoreErrorKind::Other, e.into()))?;
    let added = signed.headers().iter().filter(|(name, _)| !own.contains(name));
    let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    Ok(added.filter_map(text).collect())
}
