//! Samples of the machine's load, and the segments they travel in.

use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tpi_proto::id::{RunId, TaskId};

use crate::{Store, StoreError, log::LogFormatError};

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

/// Samples, compressed.
pub fn encode_segment(_samples: &[Sample]) -> Result<Bytes, LogFormatError> {
    unimplemented!()
}
/// The samples of a segment; refuses more than `limit` bytes of content.
pub fn decode_segment(_segment: &[u8], _limit: usize) -> Result<Vec<Sample>, LogFormatError> {
    unimplemented!()
}
/// What is stored of a run's samples from a sequence number on, at present.
pub fn read_stored(
    _store: &Store,
    _task: &TaskId,
    _run: RunId,
    _from: u64,
) -> BoxStream<'static, Result<Sample, StoreError>> {
    unimplemented!()
}
