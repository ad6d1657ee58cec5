//! After an agent was killed, its successor on the same machine finds its spool: what the store lacks of it is
//! brought there, and the spool removed.

use std::{fs, io, path::Path};

use futures::TryStreamExt;
use tpi_proto::fault::chain;
use tpi_proto::id::{RunId, TaskId};
use tpi_store::{
    Store,
    layout::TaskKeys,
    log::{decode_frame, encode_frame, encode_segment, read_stored},
};

use super::cut;

/// Frames in one segment, at most.
const SEGMENT_BYTES: usize = 8 << 20;

/// Brings every spool but that of `own` to the store.
pub(crate) async fn recover(store: &Store, task: &TaskId, spool: &Path, own: RunId) {
    let Ok(entries) = fs::read_dir(spool) else { return };
    for entry in entries.flatten() {
        let Some(run) = entry.file_name().to_str().and_then(|n| n.parse::<RunId>().ok()) else { continue };
        if run == own {
            continue;
        }
        match recover_run(store, task, run, &entry.path()).await {
            Ok(bytes) => {
                tracing::info!(%run, bytes, "the log of an earlier attempt was brought to the store");
                if let Err(error) = fs::remove_dir_all(entry.path()) {
                    tracing::warn!(%run, %error, "removing an earlier attempt's spool");
                }
            }
            Err(error) => {
                tracing::warn!(%run, error = chain(error.as_ref()), "recovering an earlier attempt's log");
            }
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn recover_run(store: &Store, task: &TaskId, run: RunId, dir: &Path) -> Result<u64, AnyError> {
    let keys = TaskKeys::new(task);
    // Only the last segment has to be read to know where the store's content ends.
    let prefix = keys.logs(run.slot, run.attempt);
    let last = store.list(&prefix, None).try_fold(None, |_, o| async { Ok(Some(o.key)) }).await?;
    let mut stored = last
        .as_deref()
        .and_then(|k| k.rsplit('/').next()?.strip_suffix(".zst")?.parse::<u64>().ok())
        .unwrap_or(0);
    let mut records = read_stored(store, task, run, stored);
    while let Some(record) = records.try_next().await? {
        stored = record.offset + record.data.len() as u64;
    }
    let begin = stored;

    let mut paths: Vec<_> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
    paths.sort();
    let (mut frames, mut first) = (Vec::new(), stored);
    for path in paths {
        let bytes = fs::read(&path)?;
        let mut at = 0;
        // A torn frame at the end was never readable by anybody.
        while let Ok(Some((record, taken))) = decode_frame(bytes.get(at..).unwrap_or_default()) {
            at += taken;
            let Some(record) = cut(record, stored) else { continue };
            if record.offset != stored {
                return Err(format!("bytes {stored} to {} are missing", record.offset).into());
            }
            stored = record.offset + record.data.len() as u64;
            encode_frame(&record, &mut frames);
            if frames.len() >= SEGMENT_BYTES {
                put(store, &keys, run, first, &mut frames).await?;
                first = stored;
            }
        }
    }
    put(store, &keys, run, first, &mut frames).await?;
    Ok(stored - begin)
}

async fn put(
    store: &Store,
    keys: &TaskKeys,
    run: RunId,
    first: u64,
    frames: &mut Vec<u8>,
) -> Result<(), AnyError> {
    if !frames.is_empty() {
        store.put(&keys.log_segment(run.slot, run.attempt, first), encode_segment(frames)?).await?;
        frames.clear();
    }
    Ok(())
}
