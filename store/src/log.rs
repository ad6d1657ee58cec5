//! Log records, the segments they travel in, and reading them by offset.
//!
//! The log of a run (slot and attempt) is one ordered sequence of bytes; a [`Record`] is a piece of it with
//! the time it was read and the stream it came from. Segments are immutable objects named by their first offset.
//!
//! A frame, in spool files and (compressed, many together) in segments; integers are little-endian:
//!
//! ```text
//! magic u8 | stream u8 | length u32 | offset u64 | time i64 | checksum [u8; 8] | bytes
//! ```
//!
//! The checksum is the beginning of the BLAKE3 of everything else. A writer that dies leaves at most one frame
//! at the end of its file that is cut off or does not check: [`recover`] tells where to cut.

use std::io::{self, Read};

use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tpi_proto::id::{RunId, TaskId};

use crate::{
    Store, StoreError,
    layout::TaskKeys,
    segments::{self, Gaps, Piece, Sequence},
};

/// Most bytes of frames in one segment: what a reader may have to hold, and how far back it has to look.
pub const SEGMENT_LIMIT: usize = 16 << 20;
/// Most bytes of one frame's data; longer records become several frames.
pub const RECORD_LIMIT: usize = 1 << 20;

const MAGIC: u8 = 0xA7;
const HEADER: usize = 30;
const CHECKSUM: std::ops::Range<usize> = 22..30;

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

impl Record {
    /// Offset after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

impl Piece for Record {
    fn start(&self) -> u64 {
        self.offset
    }
    fn end(&self) -> u64 {
        self.end()
    }
    fn cut(mut self, from: u64) -> Self {
        let skip = usize::try_from(from - self.offset).unwrap_or(usize::MAX).min(self.data.len());
        self.offset += skip as u64;
        self.data = self.data.slice(skip..);
        self
    }
}

/// Bytes that are not frames or not a segment.
#[derive(Debug, thiserror::Error)]
#[error("damaged log: {0}")]
pub struct LogFormatError(pub String);

/// Appends one record's frame (a header with checksum, and the bytes); the form of spool files and, compressed, of segments.
/// A record longer than [`RECORD_LIMIT`] becomes several frames, an empty one none.
pub fn encode_frame(record: &Record, into: &mut Vec<u8>) {
    let mut offset = record.offset;
    for data in record.data.chunks(RECORD_LIMIT) {
        let mut header = [0u8; HEADER];
        header[0] = MAGIC;
        header[1] = match record.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        // At most RECORD_LIMIT.
        header[2..6].copy_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[6..14].copy_from_slice(&offset.to_le_bytes());
        header[14..22].copy_from_slice(&record.time_unix_nanos.to_le_bytes());
        let sum = checksum(&header, data);
        header[CHECKSUM].copy_from_slice(&sum);
        into.extend_from_slice(&header);
        into.extend_from_slice(data);
        offset += data.len() as u64;
    }
}

fn checksum(header: &[u8; HEADER], data: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..CHECKSUM.start]);
    hasher.update(data);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

struct Header {
    bytes: [u8; HEADER],
    stream: Stream,
    length: usize,
    offset: u64,
    time: i64,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// `None` when it is not whole yet.
fn parse_header(bytes: &[u8]) -> Result<Option<Header>, LogFormatError> {
    if bytes.first().is_some_and(|&magic| magic != MAGIC) {
        return Err(LogFormatError("no frame begins here".into()));
    }
    let Some(bytes) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let stream = match bytes[1] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        other => return Err(LogFormatError(format!("unknown stream {other}"))),
    };
    let length = u32::from_le_bytes(array(bytes, 2)) as usize;
    if length == 0 || length > RECORD_LIMIT {
        return Err(LogFormatError(format!("a frame of {length} bytes")));
    }
    let offset = u64::from_le_bytes(array(bytes, 6));
    if offset.checked_add(length as u64).is_none() {
        return Err(LogFormatError(format!("offset {offset}")));
    }
    let time = i64::from_le_bytes(array(bytes, 14));
    Ok(Some(Header { bytes: *bytes, stream, length, offset, time }))
}

impl Header {
    fn check(&self, data: &[u8]) -> Result<(), LogFormatError> {
        if checksum(&self.bytes, data) == self.bytes[CHECKSUM] {
            Ok(())
        } else {
            Err(LogFormatError(format!("the frame at offset {} does not match its checksum", self.offset)))
        }
    }

    fn record(&self, data: Bytes) -> Record {
        Record { offset: self.offset, time_unix_nanos: self.time, stream: self.stream, data }
    }
}

/// First frame of `bytes` and how many bytes it took; `None` when it is not whole yet.
///
/// # Errors
/// Bytes that are no frame or do not match their checksum.
pub fn decode_frame(bytes: &[u8]) -> Result<Option<(Record, usize)>, LogFormatError> {
    let Some(header) = parse_header(bytes)? else { return Ok(None) };
    let Some(data) = bytes.get(HEADER..HEADER + header.length) else { return Ok(None) };
    header.check(data)?;
    Ok(Some((header.record(Bytes::copy_from_slice(data)), HEADER + header.length)))
}

/// What is whole in a spool file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Length of the file up to the end of the last whole frame: what follows was torn and is to be cut off.
    pub bytes: u64,
    /// Offset of the first whole frame; `None` when there is no frame.
    pub first_offset: Option<u64>,
    /// Log offset after the last whole frame; `None` when there is no frame.
    pub next_offset: Option<u64>,
}

/// Reads a spool file from its beginning to the first frame that is cut off, damaged, or does not follow on
/// the one before. One frame is in memory at a time.
///
/// # Errors
/// Reading failed. Damage is not an error: it is where the whole part ends.
pub fn recover(mut file: impl Read) -> io::Result<Recovered> {
    let mut found = Recovered { bytes: 0, first_offset: None, next_offset: None };
    let mut header = [0u8; HEADER];
    let mut data = Vec::new();
    loop {
        if read_up_to(&mut file, &mut header)? < HEADER {
            return Ok(found);
        }
        let Ok(Some(header)) = parse_header(&header) else { return Ok(found) };
        data.resize(header.length, 0);
        if read_up_to(&mut file, &mut data)? < header.length
            || header.check(&data).is_err()
            || found.next_offset.is_some_and(|next| next != header.offset)
        {
            return Ok(found);
        }
        found.bytes += (HEADER + header.length) as u64;
        found.first_offset = found.first_offset.or(Some(header.offset));
        found.next_offset = Some(header.offset + header.length as u64);
    }
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Many frames, compressed.
///
/// # Errors
/// More than [`SEGMENT_LIMIT`] bytes of frames: no reader would take them.
pub fn encode_segment(frames: &[u8]) -> Result<Bytes, LogFormatError> {
    if frames.len() > SEGMENT_LIMIT {
        return Err(LogFormatError(format!("{} bytes of frames do not fit a segment", frames.len())));
    }
    segments::compress(frames)
}

/// The records of a segment; refuses more than `limit` bytes of content.
///
/// # Errors
/// Bytes that are no segment, a damaged or incomplete frame, more than `limit` bytes.
pub fn decode_segment(segment: &[u8], limit: usize) -> Result<Vec<Record>, LogFormatError> {
    let content = Bytes::from(segments::decompress(segment, limit)?);
    let mut records = Vec::new();
    let mut at = 0;
    while at < content.len() {
        let cut = || LogFormatError("the last frame is not whole".into());
        let header = parse_header(&content[at..])?.ok_or_else(cut)?;
        let data = at + HEADER..at + HEADER + header.length;
        header.check(content.get(data.clone()).ok_or_else(cut)?)?;
        at = data.end;
        records.push(header.record(content.slice(data)));
    }
    Ok(records)
}

/// What is stored of a run's log from a byte on, at present: ends where the store's content ends now. The first
/// record is cut to begin exactly at `from`. A gap between segments is an error, never skipped.
///
/// A few segments are fetched ahead, so memory is bounded by a small multiple of [`SEGMENT_LIMIT`].
pub fn read_stored(
    store: &Store,
    task: &TaskId,
    run: RunId,
    from: u64,
) -> BoxStream<'static, Result<Record, StoreError>> {
    let sequence = Sequence {
        store: store.clone(),
        prefix: TaskKeys::new(task).logs(run.slot, run.attempt),
        span: SEGMENT_LIMIT as u64,
        gaps: Gaps::Refused,
        decode: |segment| decode_segment(segment, SEGMENT_LIMIT),
    };
    sequence.read(from)
}

#[cfg(test)]
mod tests;
