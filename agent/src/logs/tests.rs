use std::io::Write;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tpi_store::log::Stream;

use super::{pump::Pump, spool::Writer, upload::Uploader, *};
use crate::clock::Clock;

struct Log {
    _dir: TempDir,
    writer: Option<Writer>,
    spool: Spool,
    reader: Reader,
    store: Store,
    task: TaskId,
    run: RunId,
}

fn log() -> anyhow::Result<Log> {
    let dir = tempfile::tempdir()?;
    let (spool, writer) = Spool::create(&dir.path().join("spool"))?;
    let store = Store::memory();
    let task = TaskId::deterministic("logs")?;
    let run: RunId = "0-1".parse()?;
    let reader = Reader::new(spool.clone(), store.clone(), task.clone(), run);
    Ok(Log { _dir: dir, writer: Some(writer), spool, reader, store, task, run })
}

/// Everything from an offset on, checked for gaps.
async fn read(reader: &Reader, from: u64) -> anyhow::Result<Vec<u8>> {
    let mut stream = reader.stream(from);
    let (mut at, mut bytes) = (from, Vec::new());
    while let Some(batch) = stream.next().await {
        match batch? {
            Batch::Records(records) => {
                for record in records {
                    anyhow::ensure!(record.offset == at, "{} instead of {at}", record.offset);
                    at += record.data.len() as u64;
                    bytes.extend_from_slice(&record.data);
                }
            }
            Batch::Complete(end) => {
                anyhow::ensure!(end == at, "complete at {end}, read to {at}");
                return Ok(bytes);
            }
        }
    }
    anyhow::bail!("the stream ended without being complete")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap_or_default()).collect()
}

#[tokio::test]
async fn every_offset_reads_the_same_log() -> anyhow::Result<()> {
    let mut log = log()?;
    let content = pattern(100_000);
    let mut writer = log.writer.take().expect("not taken yet");
    for piece in content.chunks(997) {
        writer.append(1, Stream::Stdout, Bytes::copy_from_slice(piece))?;
    }
    writer.complete();
    for from in [0, 1, 996, 997, 998, 50_000, 99_999, 100_000] {
        assert_eq!(read(&log.reader, from as u64).await?, content[from..], "from {from}");
    }
    Ok(())
}

#[tokio::test]
async fn readers_follow_and_a_cut_is_no_end() -> anyhow::Result<()> {
    let mut log = log()?;
    let mut writer = log.writer.take().expect("not taken yet");
    let mut stream = log.reader.stream(2);
    writer.append(1, Stream::Stdout, Bytes::from_static(b"abc"))?;
    let Some(Ok(Batch::Records(records))) = stream.next().await else { anyhow::bail!("no records") };
    assert_eq!((records[0].offset, &records[0].data[..]), (2, &b"c"[..]));
    writer.append(1, Stream::Stderr, Bytes::from_static(b"d"))?;
    assert!(matches!(stream.next().await, Some(Ok(Batch::Records(_)))));
    drop(writer);
    assert!(matches!(stream.next().await, Some(Err(ReadError::Cut(4)))));
    assert!(stream.next().await.is_none());
    Ok(())
}

#[tokio::test]
async fn what_left_the_spool_is_read_from_the_store() -> anyhow::Result<()> {
    let mut log = log()?;
    let mut writer = log.writer.take().expect("not taken yet");
    let (events, _inbox) = mpsc::channel(8);
    let uploader = Uploader {
        spool: log.spool.clone(),
        store: log.store.clone(),
        task: log.task.clone(),
        run: log.run,
        flush: std::time::Duration::from_millis(10),
        events,
    };
    let uploading = tokio::spawn(uploader.run());
    let content = pattern(20 << 20);
    for piece in content.chunks(60_000) {
        writer.append(1, Stream::Stdout, Bytes::copy_from_slice(piece))?;
    }
    log.spool.progress().wait_for(|p| p.stored == p.end).await?;
    writer.make_room();
    assert!(matches!(log.spool.locate(0), Place::Store { .. }));
    writer.append(1, Stream::Stdout, Bytes::from_static(b"end"))?;
    writer.complete();
    let from = 12_345;
    let read = read(&log.reader, from as u64).await?;
    assert!(read[..read.len() - 3] == content[from..] && read.ends_with(b"end"));
    uploading.await?.map_err(anyhow::Error::msg)?;
    let progress = *log.spool.progress().borrow();
    assert_eq!(progress.stored, progress.end);
    Ok(())
}

#[tokio::test]
async fn the_pump_can_be_cut_while_somebody_holds_the_pipes() -> anyhow::Result<()> {
    let mut log = log()?;
    let (pipes, mut ends) = pump::pipes()?;
    let (events, _inbox) = mpsc::channel(8);
    let clock = Clock::local(jiff::SignedDuration::ZERO);
    let pump = Pump::start(log.writer.take().expect("not taken yet"), pipes, clock, events)?;
    ends.stdout.write_all(b"out")?;
    // Both ends are still open.
    pump.finish().await;
    assert_eq!(read(&log.reader, 0).await?, b"out");
    drop(ends);
    Ok(())
}
