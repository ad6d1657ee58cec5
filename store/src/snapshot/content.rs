//! Reading files: hashes, chunk borders, and content that holds still while it is read.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    time::SystemTime,
};

use fastcdc::v2020::StreamCDC;
use rustix::fs::{Mode, OFlags};

use super::{LARGEST_CHUNK, LARGEST_SMALL, manifest::Time, parallel::Meter, scan::Stat};

const SMALLEST_CHUNK: usize = 1 << 20;
const MEAN_CHUNK: usize = 4 << 20;
/// How often a file is read again that changes while it is read.
const TRIES: usize = 5;

/// A file's content at one moment.
#[derive(Debug, Clone)]
pub(super) struct Hashed {
    pub(super) stat: Stat,
    pub(super) hash: blake3::Hash,
    /// Hash and bytes of each chunk; empty for small files.
    pub(super) chunks: Vec<(blake3::Hash, u32)>,
    /// Whether a later change must show in the times, so that they may stand for the content.
    pub(super) settled: bool,
}

/// Whether something last changed at `changed` would look different if it were changed again after `seen`:
/// file systems tell times in steps.
pub(super) fn is_settled(changed: Time, seen: Time) -> bool {
    let step = if changed.1 == 0 { 2_000_000_000 } else { 100_000_000 };
    let nanos = |time: Time| i128::from(time.0) * 1_000_000_000 + i128::from(time.1);
    nanos(changed) + step < nanos(seen)
}

pub(super) fn now() -> Time {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Time(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
        Err(_) => Time(0, 0),
    }
}

/// Opens a regular file, following no link and waiting for no pipe; `None` when there is none (any more).
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Hashes a file, and cuts a large one into chunks. `None` when it vanished.
///
/// A file that changes meanwhile counts as it was at its first moment when reading that much again gives the
/// same (it only grew, as logs do); otherwise it is read anew, a few times.
pub(super) fn hash_file(path: &Path, meter: &Meter) -> io::Result<Option<Hashed>> {
    for _ in 0..TRIES {
        let Some(file) = open(path)? else { return Ok(None) };
        let seen = now();
        let before = Stat::of(&file.metadata()?);
        let Some((hash, chunks)) = read(&file, before.size, meter)? else { continue };
        let after = Stat::of(&file.metadata()?);
        if after == before {
            let settled = is_settled(before.mtime.max(before.ctime), seen);
            return Ok(Some(Hashed { stat: before, hash, chunks, settled }));
        }
        let again = open(path)?.map_or_else(|| file.try_clone(), Ok)?;
        if read(&again, before.size, &Meter::default())?.is_some_and(|(again, _)| again == hash) {
            return Ok(Some(Hashed { stat: before, hash, chunks, settled: false }));
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changes faster than it can be read"))
}

/// Hash of the whole, and hash and bytes of each chunk.
type Sums = (blake3::Hash, Vec<(blake3::Hash, u32)>);

/// `None` when there are fewer bytes.
fn read(file: &File, size: u64, meter: &Meter) -> io::Result<Option<Sums>> {
    use std::io::Seek;
    let mut file = file;
    file.seek(io::SeekFrom::Start(0))?;
    let mut whole = blake3::Hasher::new();
    let mut chunks = Vec::new();
    if size > LARGEST_SMALL {
        for chunk in StreamCDC::new(file.take(size), SMALLEST_CHUNK, MEAN_CHUNK, LARGEST_CHUNK) {
            let chunk = chunk.map_err(io::Error::from)?;
            meter.check()?;
            whole.update(&chunk.data);
            let length = u32::try_from(chunk.data.len()).map_err(io::Error::other)?;
            chunks.push((blake3::hash(&chunk.data), length));
            meter.add(u64::from(length));
        }
    } else {
        meter.check()?;
        let mut buffer = vec![0; 128 << 10];
        let mut left = file.take(size);
        loop {
            match left.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    whole.update(&buffer[..count]);
                    meter.add(count as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok((whole.count() == size).then(|| (whole.finalize(), chunks)))
}

/// Part of a file, when it still is what was hashed.
pub(super) fn read_part(
    path: &Path,
    offset: u64,
    size: usize,
    hash: &blake3::Hash,
) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut data = vec![0; size];
    match file.read_exact_at(&mut data, offset) {
        Ok(()) => Ok((blake3::hash(&data) == *hash).then_some(data)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// A chunk as it is stored: compressed where that is worth it.
pub(super) fn encode_chunk(data: Vec<u8>) -> io::Result<bytes::Bytes> {
    // A sample from the middle tells data that is compressed already.
    let middle = data.len() / 2;
    let sample = data.get(middle..data.len().min(middle + (64 << 10))).unwrap_or(&data);
    if zstd::bulk::compress(sample, 1)?.len() * 100 > sample.len() * 97 {
        return Ok(data.into());
    }
    let compressed = zstd::bulk::compress(&data, 3)?;
    Ok(if compressed.len() < data.len() { compressed.into() } else { data.into() })
}

/// The bytes of a chunk; `None` when they are not those of that hash and size.
pub(super) fn decode_chunk(stored: bytes::Bytes, size: usize, hash: &blake3::Hash) -> Option<bytes::Bytes> {
    if stored.len() == size && blake3::hash(&stored) == *hash {
        return Some(stored);
    }
    let data = crate::segments::decompress(&stored, size).ok()?;
    (data.len() == size && blake3::hash(&data) == *hash).then(|| data.into())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn times_settle_after_a_step() {
        assert!(!is_settled(Time(10, 5), Time(10, 6)));
        assert!(!is_settled(Time(10, 5), Time(10, 100_000_000)));
        assert!(is_settled(Time(10, 5), Time(10, 200_000_000)));
        // Whole seconds may mean that the file system knows no others.
        assert!(!is_settled(Time(10, 0), Time(11, 500_000_000)));
        assert!(is_settled(Time(10, 0), Time(13, 0)));
        assert!(!is_settled(Time(20, 0), Time(13, 0)));
    }

    /// A log that is written to without a pause can be read: as the beginning that it had.
    #[test]
    fn a_file_that_only_grows_is_taken_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut file = File::create(&path).unwrap();
            let done = &done;
            scope.spawn(move || {
                for line in 0..2_000_000u64 {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    writeln!(file, "line {line}").unwrap();
                }
            });
            for _ in 0..50 {
                let hashed = hash_file(&path, &Meter::default()).unwrap().unwrap();
                let size = usize::try_from(hashed.stat.size).unwrap();
                assert!(read_part(&path, 0, size, &hashed.hash).unwrap().is_some());
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn chunks_come_back_and_damage_is_found() {
        for data in [vec![7; 3 << 20], blake3::hash(b"x").as_bytes().repeat(3), Vec::from(*b"a")] {
            let hash = blake3::hash(&data);
            let stored = encode_chunk(data.clone()).unwrap();
            assert!(stored.len() <= data.len());
            assert!(decode_chunk(stored.clone(), data.len(), &hash).unwrap() == data);
            assert!(decode_chunk(stored.clone(), data.len() - 1, &hash).is_none());
            assert!(decode_chunk(stored.slice(1..), data.len(), &hash).is_none());
        }
    }
}
