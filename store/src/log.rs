//! Log records, the segments they travel in, and reading them by offset.
//!
//! The log of a run (slot and attempt) is one ordered sequence of bytes; a [`Record`] is a piece of it with
//! the time it was read and the stream it came from. Segments are immutable objects named by their first offset.

use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tpi_proto::id::{RunId, TaskId};

use crate::{Store, StoreError};

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Offset of the first byte.
    pub offset: u64,
    /// When it was read, Unix nanoseconds.
    pub time_unix_nanos: i64,
    /// From where.
    pub stream: Stream,
    /// The bytes; never empty.
    pub data: Bytes,
}

/// Bytes that are not frames or not a segment.
#[derive(Debug, thiserror::Error)]
#[error("damaged log: {0}")]
pub struct LogFormatError(pub String);

/// Appends one record's frame (a header with checksum, and the bytes); the form of spool files and, compressed, of segments.
pub fn encode_frame(_record: &Record, _into: &mut Vec<u8>) {
    unimplemented!()
}
/// First frame of `bytes` and how many bytes it took; `None` when it is not whole yet.
pub fn decode_frame(_bytes: &[u8]) -> Result<Option<(Record, usize)>, LogFormatError> {
    unimplemented!()
}
/// Many frames, compressed.
pub fn encode_segment(_frames: &[u8]) -> Result<Bytes, LogFormatError> {
    unimplemented!()
}
/// The records of a segment; refuses more than `limit` bytes of content.
pub fn decode_segment(_segment: &[u8], _limit: usize) -> Result<Vec<Record>, LogFormatError> {
    unimplemented!()
}

/// What is stored of a run's log from a byte on, at present: ends where the store's content ends now. The first
/// record is cut to begin exactly at `from`. A gap between segments is an error, never skipped.
pub fn read_stored(
    _store: &Store,
    _task: &TaskId,
    _run: RunId,
    _from: u64,
) -> BoxStream<'static, Result<Record, StoreError>> {
    unimplemented!()
}
