//! Samples of the machine's load, and the segments they travel in.

use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tpi_proto::id::{RunId, TaskId};

use crate::{
    Store, StoreError,
    layout::TaskKeys,
    log::LogFormatError,
    segments::{self, Gaps, Piece, Sequence},
};

/// One second of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Counted from 0 in each attempt.
    pub sequence: u64,
    /// When, Unix nanoseconds.
    pub time_unix_nanos: i64,
    /// 0 to 1 over all cores.
    pub cpu: f64,
    /// Bytes.
    pub memory_used: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes, on the disk of the work directory.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
    /// Bytes since boot.
    pub network_received: u64,
    /// Bytes since boot.
    pub network_sent: u64,
    /// One per GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuSample>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Index.
    pub index: u32,
    /// Model.
    pub name: String,
    /// 0 to 1.
    pub utilisation: f64,
    /// Bytes.
    pub memory_used: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Watts.
    pub power_watts: f64,
    /// Degrees Celsius.
    pub temperature_celsius: f64,
    /// Processes using it.
    pub processes: u32,
}

/// Most samples in one segment: an hour.
pub const SEGMENT_SAMPLES: usize = 3600;
/// Most bytes of one segment before compression.
const SEGMENT_BYTES: usize = 64 << 20;

impl Piece for Sample {
    fn start(&self) -> u64 {
        self.sequence
    }
    fn end(&self) -> u64 {
        self.sequence.saturating_add(1)
    }
    fn cut(self, _from: u64) -> Self {
        self
    }
}

/// Samples, compressed: zstd over one JSON object a line.
///
/// # Errors
/// More than [`SEGMENT_SAMPLES`], counted from the first sequence number to the last: no reader would find them.
pub fn encode_segment(samples: &[Sample]) -> Result<Bytes, LogFormatError> {
    if let (Some(first), Some(last)) = (samples.first(), samples.last())
        && last.sequence.saturating_sub(first.sequence) >= SEGMENT_SAMPLES as u64
    {
        return Err(LogFormatError("more samples than fit a segment".into()));
    }
    let mut lines = Vec::new();
    for sample in samples {
        serde_json::to_writer(&mut lines, sample).map_err(|e| LogFormatError(e.to_string()))?;
        lines.push(b'\n');
    }
    segments::compress(&lines)
}

/// The samples of a segment; refuses more than `limit` bytes of content.
///
/// # Errors
/// Bytes that are no segment, more than `limit` bytes.
pub fn decode_segment(segment: &[u8], limit: usize) -> Result<Vec<Sample>, LogFormatError> {
    segments::decompress(segment, limit)?
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).map_err(|e| LogFormatError(e.to_string())))
        .collect()
}

/// What is stored of a run's samples from a sequence number on, at present. Samples that were never taken or
/// lost with a machine are skipped: a curve with a hole is better than none.
pub fn read_stored(
    store: &Store,
    task: &TaskId,
    run: RunId,
    from: u64,
) -> BoxStream<'static, Result<Sample, StoreError>> {
    let sequence = Sequence {
        store: store.clone(),
        prefix: TaskKeys::new(task).telemetry(run.slot, run.attempt),
        span: SEGMENT_SAMPLES as u64,
        gaps: Gaps::Skipped,
        decode: |segment| decode_segment(segment, SEGMENT_BYTES),
    };
    sequence.read(from)
}
