//! Changing files below a folder and nowhere else.
//!
//! Every path is walked from an open folder, one name at a time, without following a link, and the change is
//! made relative to the folder that was reached (`openat` and its relatives). So no link, whether it was there
//! or is put there meanwhile, leads out or elsewhere inside.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RawMode, RenameFlags, Stat, Timespec,
        Timestamps,
    },
    io::Errno,
};

use super::{STAGING, SnapshotError, manifest::Time};

/// A folder below which things are changed. Cheap to clone; clones are for other threads.
#[derive(Debug, Clone)]
pub(super) struct Beneath {
    pub(super) root: PathBuf,
    fd: Arc<OwnedFd>,
    /// The folder that was reached last: files mostly come folder by folder.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
}

const OPEN_FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: i64::from(mtime.1) };
    Timestamps { last_access: time, last_modification: time }
}

fn mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode as RawMode)
}

fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        (None | Some(_), _) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl Beneath {
    /// The root is made when absent, and may itself be reached through links: it is the caller's choice.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())?;
        Ok(Self { root: root.to_owned(), fd: Arc::new(fd), last: None })
    }

    pub(super) fn error(&self, operation: &'static str, path: &Path, source: io::Error) -> SnapshotError {
        let unsafe_path = |cause: &str| SnapshotError::Unsafe { path: path.to_owned(), cause: cause.into() };
        let errno = source.raw_os_error();
        if errno == Some(Errno::LOOP.raw_os_error()) || errno == Some(Errno::NOTDIR.raw_os_error()) {
            return unsafe_path("something on its path is a link or no folder");
        }
        SnapshotError::File { operation, path: self.root.join(path), source }
    }

    fn folder(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(fd));
        }
        let mut fd = Arc::clone(&self.fd);
        for part in path {
            fd = Arc::new(rustix::fs::openat(&fd, part, OPEN_FOLDER, Mode::empty())?);
        }
        self.last = Some((path.to_owned(), Arc::clone(&fd)));
        Ok(fd)
    }

    /// What is there, not following a link; `None` when nothing is.
    pub(super) fn stat(&mut self, path: &Path) -> io::Result<Option<Stat>> {
        let (parent, name) = split(path)?;
        let parent = match self.folder(parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn open_file(&mut self, path: &Path) -> io::Result<File> {
        let (parent, name) = split(path)?;
        let parent = self.folder(parent)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&parent, name, flags, Mode::empty())?))
    }

    pub(super) fn read_link(&mut self, path: &Path) -> io::Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let (parent, name) = split(path)?;
        let parent = self.folder(parent)?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
    }

    pub(super) fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let parent = self.folder(parent)?;
        Ok(rustix::fs::mkdirat(&parent, name, Mode::RWXU)?)
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let parent = self.folder(parent)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    /// Mode, and time when given, of a folder.
    pub(super) fn set_folder(&mut self, path: &Path, bits: u32, mtime: Option<Time>) -> io::Result<()> {
        // Reached anew: after this it may not be possible.
        self.last = None;
        let (parent, name) = split(path)?;
        let parent = self.folder(parent)?;
        // A folder that cannot be read can still have its mode set through its parent; links were ruled out
        // when it was entered, and `fchmodat` follows none of those before the last part.
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        match rustix::fs::openat(&parent, name, OPEN_FOLDER, Mode::empty()) {
            Ok(fd) => {
                if let Some(mtime) = mtime {
                    rustix::fs::futimens(&fd, &times(mtime))?;
                }
                rustix::fs::fchmod(&fd, mode(bits))?;
            }
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(&parent, name, mode(bits), AtFlags::empty())?;
                if let Some(mtime) = mtime {
                    rustix::fs::utimensat(&parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
            Err(e) => return Err(e.into()),
        }
        self.last = None;
        Ok(())
    }

    /// Mode and time of a file that has the right content already.
    pub(super) fn set_file(&mut self, path: &Path, bits: u32, mtime: Time) -> io::Result<()> {
        let file = self.open_file(path)?;
        rustix::fs::fchmod(&file, mode(bits))?;
        Ok(rustix::fs::futimens(&file, &times(mtime))?)
    }

    /// Bytes that are free for this user.
    pub(super) fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&*self.fd)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// All that was written below is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&*self.fd)?;
        #[cfg(not(target_os = "linux"))]
        rustix::fs::sync();
        Ok(())
    }
}

/// A folder in the root for files that are not whole yet. It is locked while its maker lives, so the next one
/// removes those of the dead.
#[derive(Debug)]
pub(super) struct Staging {
    beneath: Beneath,
    name: PathBuf,
    fd: OwnedFd,
    next: AtomicU64,
}

/// A file that is not whole yet; removed unless it is put in its place.
#[derive(Debug)]
pub(super) struct Staged {
    staging: Arc<Staging>,
    name: String,
    pub(super) file: File,
}

impl Staging {
    pub(super) fn new(beneath: &Beneath) -> io::Result<Arc<Self>> {
        sweep(beneath);
        let name = PathBuf::from(format!("{STAGING}{:016x}", rand::random::<u64>()));
        rustix::fs::mkdirat(&*beneath.fd, &name, Mode::RWXU)?;
        let fd = rustix::fs::openat(&*beneath.fd, &name, OPEN_FOLDER, Mode::empty())?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Arc::new(Self { beneath: beneath.clone(), name, fd, next: AtomicU64::new(0) }))
    }

    pub(super) fn file(self: &Arc<Self>) -> io::Result<Staged> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Staged { staging: Arc::clone(self), name, file: File::from(file) })
    }

    /// Makes a link at a path, replacing what is there if that is allowed.
    pub(super) fn link(
        &self,
        beneath: &mut Beneath,
        target: &Path,
        mtime: Time,
        path: &Path,
        replace: bool,
    ) -> io::Result<()> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        rustix::fs::symlinkat(target, &self.fd, &name)?;
        rustix::fs::utimensat(&self.fd, &name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        let placed = self.place(beneath, &name, path, replace);
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(&self.fd, &name, AtFlags::empty());
        }
        placed
    }

    fn place(&self, beneath: &mut Beneath, name: &str, path: &Path, replace: bool) -> io::Result<()> {
        let (parent, file) = split(path)?;
        let parent = beneath.folder(parent)?;
        if replace {
            return Ok(rustix::fs::renameat(&self.fd, name, &parent, file)?);
        }
        match rustix::fs::renameat_with(&self.fd, name, &parent, file, RenameFlags::NOREPLACE) {
            // File systems without that flag: what was seen to be free a moment ago is taken to be.
            Err(Errno::INVAL | Errno::NOSYS) => Ok(rustix::fs::renameat(&self.fd, name, &parent, file)?),
            other => Ok(other?),
        }
    }
}

impl Staged {
    /// Sets mode and time and moves it to its place: from then on it is there, whole.
    pub(super) fn place(
        self,
        beneath: &mut Beneath,
        path: &Path,
        bits: u32,
        mtime: Time,
        replace: bool,
    ) -> io::Result<()> {
        rustix::fs::fchmod(&self.file, mode(bits))?;
        rustix::fs::futimens(&self.file, &times(mtime))?;
        match self.staging.place(beneath, &self.name, path, replace) {
            Err(e) if e.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                self.place_elsewhere(beneath, path, bits, mtime, replace)
            }
            other => other,
        }
    }

    /// The folder is on another file system: through a hidden name beside the place.
    fn place_elsewhere(
        &self,
        beneath: &mut Beneath,
        path: &Path,
        bits: u32,
        mtime: Time,
        replace: bool,
    ) -> io::Result<()> {
        use std::io::Seek;
        let (parent, name) = split(path)?;
        let parent = beneath.folder(parent)?;
        let temporary = format!("{STAGING}{:016x}", rand::random::<u64>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut to = File::from(rustix::fs::openat(&parent, &temporary, flags, Mode::RUSR | Mode::WUSR)?);
        let work = || {
            let mut from = &self.file;
            from.rewind()?;
            io::copy(&mut from, &mut to)?;
            to.flush()?;
            rustix::fs::fchmod(&to, mode(bits))?;
            rustix::fs::futimens(&to, &times(mtime))?;
            let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            Ok(rustix::fs::renameat_with(&parent, &temporary, &parent, name, flags)?)
        };
        let mut work = work;
        work().inspect_err(|_: &io::Error| {
            let _ = rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty());
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already when it was placed.
        let _ = rustix::fs::unlinkat(&self.staging.fd, &self.name, AtFlags::empty());
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        empty(&self.fd);
        if let Err(error) = rustix::fs::unlinkat(&*self.beneath.fd, &self.name, AtFlags::REMOVEDIR) {
            tracing::debug!(name = ?self.name, %error, "folder of unfinished files not removed");
        }
    }
}

fn empty(folder: &OwnedFd) {
    let Ok(entries) = Dir::read_from(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
        }
    }
}

/// Removes what dead restores left; failing is fine, nothing depends on it.
fn sweep(beneath: &Beneath) {
    let Ok(entries) = Dir::read_from(&*beneath.fd) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(STAGING.as_bytes()) {
            continue;
        }
        let Ok(fd) = rustix::fs::openat(&*beneath.fd, name, OPEN_FOLDER, Mode::empty()) else { continue };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            empty(&fd);
            let _ = rustix::fs::unlinkat(&*beneath.fd, name, AtFlags::REMOVEDIR);
        }
    }
}
