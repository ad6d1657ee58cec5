//! What goes in the bucket: the durable contract of a task, and the one [`Store`] through which everybody
//! reads and writes it. Storage is the truth; a live connection only makes things arrive sooner.
//!
//! * [`backend`]: memory, `file://` and S3 behind one type, with conditional writes on each.
//! * [`layout`]: the keys, in one place.
//! * [`record`]: the small JSON objects and who may write them.
//! * [`identity`]: keys, and the certificates that are published for them.
//! * [`private`]: files that only their owner may read.
//! * [`log`]: log records, the segments they travel in, and reading them by offset.
//! * [`telemetry`]: the same for samples.
//! * [`rules`]: which files of a folder travel.
//! * [`snapshot`]: folders as content-addressed packs, chunks and a manifest.

pub mod backend;
pub mod identity;
pub mod layout;
pub mod log;
pub mod private;
pub mod record;
pub mod rules;
mod segments;
pub mod snapshot;
pub mod telemetry;

pub use backend::{AccessKey, KeySource, Store, StoreError, StoreErrorKind, Unsigned, Version, sign_aws_v4};
