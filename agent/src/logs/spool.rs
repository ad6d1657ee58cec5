//! The log on disk: files of frames, one writer, any number of readers.
//!
//! A frame is readable once `write` has returned; the page cache keeps it when the agent is killed. Files are
//! dropped only when all they hold is in the store, and only when room is needed.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;
use tpi_store::log::{Record, Stream, encode_frame};

/// Size at which a new file is begun.
const FILE_BYTES: u64 = 8 << 20;
/// Distance between two entries of a file's index.
const INDEX_BYTES: u64 = 256 << 10;
/// Spool files are kept for readers up to this size, when the disk has room.
const CAP_BYTES: u64 = 1 << 30;
/// Free room below which nothing is kept that is in the store.
const LOW_DISK_BYTES: u64 = 512 << 20;

/// How far the log has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Bytes in the spool.
    pub(crate) end: u64,
    /// Bytes in the store.
    pub(crate) stored: u64,
    /// Whether nothing follows.
    pub(crate) complete: bool,
    /// Whether the writer is gone.
    pub(crate) closed: bool,
}

#[derive(Debug)]
struct SpoolFile {
    path: PathBuf,
    file: Arc<File>,
    /// Offset of its first byte of log.
    first: u64,
    /// Offset after its last byte of log.
    end: u64,
    /// Bytes of frames.
    len: u64,
    /// Offset of a frame, and where in the file it begins; every [`INDEX_BYTES`].
    index: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    files: Mutex<VecDeque<SpoolFile>>,
    progress: watch::Sender<Progress>,
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, VecDeque<SpoolFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an offset is.
#[derive(Debug)]
pub(crate) enum Place {
    /// In a spool file: frames from `position` to `len`; the first may begin before the offset.
    File { file: Arc<File>, position: u64, len: u64 },
    /// Dropped from the spool; the spool begins at this offset.
    Store { spool_from: u64 },
    /// Not written yet.
    End,
}

/// The reading side. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
}

impl Spool {
    /// A new spool in a folder of its own.
    pub(crate) fn create(dir: &Path) -> io::Result<(Self, Writer)> {
        std::fs::create_dir_all(dir)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            files: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        });
        Ok((Self { shared: Arc::clone(&shared) }, Writer { shared, frame: Vec::new() }))
    }

    /// Follows the log.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Finds an offset.
    pub(crate) fn locate(&self, offset: u64) -> Place {
        let files = self.shared.files();
        let Some(oldest) = files.front() else {
            let end = self.shared.progress.borrow().end;
            return if offset < end { Place::Store { spool_from: end } } else { Place::End };
        };
        if offset < oldest.first {
            return Place::Store { spool_from: oldest.first };
        }
        let after = files.partition_point(|f| f.end <= offset);
        let Some(found) = files.get(after) else { return Place::End };
        let entry = found.index.partition_point(|(first, _)| *first <= offset);
        let position = entry.checked_sub(1).and_then(|i| found.index.get(i)).map_or(0, |(_, p)| *p);
        Place::File { file: Arc::clone(&found.file), position, len: found.len }
    }

    /// Bytes up to `offset` are in the store.
    pub(crate) fn set_stored(&self, offset: u64) {
        self.shared.progress.send_modify(|p| p.stored = p.stored.max(offset));
        let spooled: u64 = self.shared.files().iter().map(|f| f.len).sum();
        if spooled > CAP_BYTES || free_bytes(&self.shared.dir).is_some_and(|free| free < LOW_DISK_BYTES) {
            trim(&self.shared, 1);
        }
    }
}

/// Room for unprivileged writers on the disk of `path`.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize))
}

/// Drops the oldest files that are in the store, but keeps some.
fn trim(shared: &Shared, keep: usize) {
    let stored = shared.progress.borrow().stored;
    let mut files = shared.files();
    while files.len() > keep && files.front().is_some_and(|f| f.end <= stored) {
        if let Some(old) = files.pop_front()
            && let Err(error) = std::fs::remove_file(&old.path)
        {
            tracing::warn!(path = ?old.path, %error, "a spool file could not be removed");
        }
    }
}

/// The one writer. Dropping it without [`Writer::complete`] cuts the log.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    frame: Vec<u8>,
}

impl Writer {
    /// Appends a piece; it can be read when this returns. After an error nothing was appended, and the same piece
    /// may be tried again.
    pub(crate) fn append(&mut self, time_unix_nanos: i64, stream: Stream, data: Bytes) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let offset = self.shared.progress.borrow().end;
        let size = data.len() as u64;
        let (file, position) = self.target(offset)?;
        self.frame.clear();
        encode_frame(&Record { offset, time_unix_nanos, stream, data }, &mut self.frame);
        file.write_all_at(&self.frame, position)?;
        {
            let mut files = self.shared.files();
            if let Some(current) = files.back_mut() {
                if current.index.last().is_none_or(|(_, at)| position - at >= INDEX_BYTES) {
                    current.index.push((offset, position));
                }
                current.len = position + self.frame.len() as u64;
                current.end = offset + size;
            }
        }
        self.shared.progress.send_modify(|p| p.end = offset + size);
        Ok(())
    }

    /// The file that the next frame goes to, and where in it.
    fn target(&self, offset: u64) -> io::Result<(Arc<File>, u64)> {
        let mut files = self.shared.files();
        if let Some(current) = files.back()
            && current.len < FILE_BYTES
        {
            return Ok((Arc::clone(&current.file), current.len));
        }
        let path = self.shared.dir.join(format!("{}.log", tpi_store::layout::number(offset)));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let file = Arc::new(file);
        files.push_back(SpoolFile {
            path,
            file: Arc::clone(&file),
            first: offset,
            end: offset,
            len: 0,
            index: Vec::new(),
        });
        Ok((file, 0))
    }

    /// Makes room: drops what is in the store already, the file that is being written included.
    pub(crate) fn make_room(&self) {
        trim(&self.shared, 0);
    }

    /// Nothing follows.
    pub(crate) fn complete(self) {
        self.shared.progress.send_modify(|p| p.complete = true);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.progress.send_modify(|p| p.closed = true);
    }
}
