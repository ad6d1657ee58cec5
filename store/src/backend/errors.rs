//! Where errors of libraries and of the system become ours: the one place.

use std::{error::Error, io};

use object_store::client::HttpError;

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No such object.
    NotFound,
    /// A create-only write met an object.
    AlreadyExists,
    /// A compare-and-swap met another version.
    Conflict,
    /// The credentials are missing, expired or wrong.
    Unauthenticated,
    /// They do not allow this.
    PermissionDenied,
    /// The disk is full.
    NoSpace,
    /// The content is not what its name or version promises.
    Corrupt,
    /// The store cannot be reached or is overloaded; trying again may help.
    Unavailable,
    /// The URL is wrong, or the backend lacks something that is needed.
    Unsupported,
    /// Anything else.
    Other,
}

/// What was being done to what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key}")]
pub struct StoreError {
    /// What a caller can act on.
    pub kind: StoreErrorKind,
    /// `reading`, `writing`, `listing`, …
    pub operation: &'static str,
    /// Key or URL.
    pub key: String,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Codes of S3 answers that say who is asking is not known (any more), as opposed to not allowed.
const IDENTITY: [&str; 7] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "UnrecognizedClient",
];

/// The same for answers that go away when one asks again later.
const BUSY: [&str; 5] =
    ["SlowDown", "status code: 5", "status code: 429", "status code: 408", "RequestTimeout"];

/// Kind of an error of the system.
pub(super) fn io_kind(error: &io::Error) -> StoreErrorKind {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list is open")]
    match error.kind() {
        io::ErrorKind::NotFound => StoreErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => StoreErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreErrorKind::PermissionDenied
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreErrorKind::NoSpace
        }
        io::ErrorKind::TimedOut
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::Interrupted
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::UnexpectedEof => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Other,
    }
}

fn causes<'a>(first: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(first), |error| (*error).source())
}

/// Kind of an error that `object_store` has no name for: told by what caused it.
fn kind_by_cause(error: &(dyn Error + 'static)) -> StoreErrorKind {
    for cause in causes(error) {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && !matches!(io_kind(io), StoreErrorKind::Other)
        {
            return io_kind(io);
        }
        if cause.downcast_ref::<HttpError>().is_some() {
            return StoreErrorKind::Unavailable;
        }
    }
    let text = causes(error).map(ToString::to_string).collect::<Vec<_>>().join("\n");
    // Lists come without a name for what the server answered.
    if text.contains("NoSuchBucket") {
        StoreErrorKind::Unsupported
    } else if IDENTITY.iter().any(|code| text.contains(code)) || text.contains("status code: 401") {
        StoreErrorKind::Unauthenticated
    } else if text.contains("status code: 403") {
        StoreErrorKind::PermissionDenied
    } else if BUSY.iter().any(|code| text.contains(code)) {
        StoreErrorKind::Unavailable
    } else {
        StoreErrorKind::Other
    }
}

fn kind(error: &object_store::Error) -> StoreErrorKind {
    use object_store::Error as E;
    let says = |code: &str| causes(error).any(|cause| cause.to_string().contains(code));
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list is open")]
    match error {
        // The bucket, not the object.
        E::NotFound { .. } if says("NoSuchBucket") => StoreErrorKind::Unsupported,
        E::NotFound { .. } => StoreErrorKind::NotFound,
        E::AlreadyExists { .. } => StoreErrorKind::AlreadyExists,
        E::Precondition { .. } | E::NotModified { .. } => StoreErrorKind::Conflict,
        E::PermissionDenied { .. } if IDENTITY.iter().any(|code| says(code)) => {
            StoreErrorKind::Unauthenticated
        }
        E::PermissionDenied { .. } => StoreErrorKind::PermissionDenied,
        E::Unauthenticated { .. } => StoreErrorKind::Unauthenticated,
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => StoreErrorKind::Unsupported,
        E::Generic { .. } => kind_by_cause(error),
        _ => StoreErrorKind::Other,
    }
}

impl StoreError {
    /// Whether trying again may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable)
    }

    pub(crate) fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        key: &str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { kind, operation, key: key.to_owned(), source: Some(source.into()) }
    }

    pub(super) fn of(operation: &'static str, key: &str, source: object_store::Error) -> Self {
        Self::new(kind(&source), operation, key, source)
    }

    pub(super) fn of_io(operation: &'static str, key: &str, source: io::Error) -> Self {
        Self::new(io_kind(&source), operation, key, source)
    }
}
