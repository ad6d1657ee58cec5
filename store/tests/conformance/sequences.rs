use bytes::Bytes;
use futures::TryStreamExt;
use tpi_proto::id::{Attempt, RunId, SlotIndex, TaskId};
use tpi_store::{
    Store, StoreErrorKind,
    layout::TaskKeys,
    log::{self, Record, Stream},
    telemetry::{self, Sample},
};

use crate::backends::Backend;

const RUN: RunId = RunId { slot: SlotIndex(0), attempt: Attempt(1) };

fn task() -> TaskId {
    TaskId::deterministic("test").unwrap()
}

/// Byte of the log at an offset.
fn byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn records(from: u64, to: u64, step: u64) -> Vec<Record> {
    (from..to)
        .step_by(usize::try_from(step).unwrap())
        .map(|offset| Record {
            offset,
            time_unix_nanos: i64::try_from(offset).unwrap(),
            stream: if offset % 2 == 0 { Stream::Stdout } else { Stream::Stderr },
            data: (offset..to.min(offset + step)).map(byte).collect::<Vec<u8>>().into(),
        })
        .collect()
}

async fn put(store: &Store, from: u64, to: u64) {
    let mut frames = Vec::new();
    for record in records(from, to, 7) {
        log::encode_frame(&record, &mut frames);
    }
    let key = TaskKeys::new(&task()).log_segment(RUN.slot, RUN.attempt, from);
    store.put(&key, log::encode_segment(&frames).unwrap()).await.unwrap();
}

async fn read(store: &Store, from: u64) -> Result<(u64, Vec<u8>), tpi_store::StoreError> {
    let records: Vec<Record> = log::read_stored(store, &task(), RUN, from).try_collect().await?;
    let mut next = from;
    for record in &records {
        assert_eq!(record.offset, next);
        next = record.end();
    }
    Ok((next, records.iter().flat_map(|r| r.data.to_vec()).collect()))
}

pub(crate) async fn logs_are_read_from_any_byte(backend: Backend) {
    let store = backend.store;
    assert_eq!(read(&store, 0).await.unwrap(), (0, vec![]));
    // With overlaps, as after a crash: 40..90 twice, and a short one inside another.
    for (from, to) in [(0, 50), (40, 90), (90, 200), (100, 110), (200, 300), (300, 301), (301, 400)] {
        put(&store, from, to).await;
    }
    let all: Vec<u8> = (0..400).map(byte).collect();
    for from in (0..=400).step_by(9).chain([49, 50, 89, 90, 111, 112, 150, 199, 200, 299, 300, 301, 399]) {
        let (end, found) = read(&store, from).await.unwrap();
        assert_eq!(end, 400, "from {from}");
        assert_eq!(found, all[usize::try_from(from).unwrap()..], "from {from}");
    }
    assert_eq!(read(&store, 500).await.unwrap(), (500, vec![]));
}

pub(crate) async fn a_gap_in_a_log_is_an_error(backend: Backend) {
    let store = backend.store;
    put(&store, 10, 20).await;
    put(&store, 30, 40).await;
    assert_eq!(read(&store, 0).await.unwrap_err().kind, StoreErrorKind::Corrupt);
    assert_eq!(read(&store, 12).await.unwrap_err().kind, StoreErrorKind::Corrupt);
    assert_eq!(read(&store, 20).await.unwrap_err().kind, StoreErrorKind::Corrupt);
    assert_eq!(read(&store, 31).await.unwrap().0, 40);
    let key = TaskKeys::new(&task()).log_segment(RUN.slot, RUN.attempt, 30);
    store.put(&key, Bytes::from_static(b"nonsense")).await.unwrap();
    let damaged = read(&store, 31).await.unwrap_err();
    assert_eq!((damaged.kind, damaged.key), (StoreErrorKind::Corrupt, key));
}

/// The segment that contains an offset is found without listing all of the log before it.
pub(crate) async fn far_into_a_long_log(backend: Backend) {
    let store = backend.store;
    let far = 10 * log::SEGMENT_LIMIT as u64;
    put(&store, far, far + 100).await;
    put(&store, far + 100, far + 200).await;
    assert_eq!(read(&store, far + 50).await.unwrap().0, far + 200);
    assert_eq!(read(&store, far + 200).await.unwrap(), (far + 200, vec![]));
}

fn sample(sequence: u64) -> Sample {
    Sample {
        sequence,
        time_unix_nanos: 1,
        cpu: 0.5,
        memory_used: 1,
        memory_total: 2,
        disk_used: 3,
        disk_total: 4,
        network_received: 5,
        network_sent: 6,
        gpus: Vec::new(),
    }
}

pub(crate) async fn telemetry_skips_what_is_missing(backend: Backend) {
    let store = backend.store;
    for numbers in [0..5, 3..10, 20..25] {
        let key = TaskKeys::new(&task()).telemetry_segment(RUN.slot, RUN.attempt, numbers.start);
        let samples: Vec<Sample> = numbers.map(sample).collect();
        store.put(&key, telemetry::encode_segment(&samples).unwrap()).await.unwrap();
    }
    for from in 0..26 {
        let found: Vec<Sample> =
            telemetry::read_stored(&store, &task(), RUN, from).try_collect().await.unwrap();
        let numbers: Vec<u64> = found.iter().map(|s| s.sequence).collect();
        let expected: Vec<u64> = (0..10).chain(20..25).filter(|n| *n >= from).collect();
        assert_eq!(numbers, expected, "from {from}");
    }
    assert!(telemetry::encode_segment(&[sample(0), sample(3600)]).is_err());
}
