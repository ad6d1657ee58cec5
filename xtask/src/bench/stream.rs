//! A client that reads what a script prints. It is the same for every peer: the script says `ready`, waits for
//! a file named `go` beside it, and prints the rest; the clock starts when `go` is made.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

/// The first line of every such script.
pub(super) const READY: &str = "ready";

/// Writes `folder/script.sh`, which runs `then` after `go`.
pub(super) fn script(folder: &Path, then: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("script.sh");
    let go = folder.join("go");
    let go = go.display();
    let text = format!("#!/bin/sh\necho {READY}\nwhile [ ! -e '{go}' ]; do sleep 0.05; done\n{then}\n");
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    drop(std::fs::remove_file(folder.join("go")));
    Ok(())
}

/// A client under way, killed when dropped.
pub(super) struct Client {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    /// What it says beside the data, wanted when it fails.
    said: File,
}

impl Client {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let said = tempfile::tempfile()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(said.try_clone()?))
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let out = child.stdout.take().context("no stdout")?;
        Ok(Self { child, out: BufReader::with_capacity(1 << 18, out), said })
    }

    /// Reads the line `ready`.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.out.read_line(&mut line)? == 0 {
                bail!("the client ended before the script was ready: {}", self.complaint());
            }
            if line.trim_end() == READY {
                return Ok(());
            }
        }
    }

    pub(super) fn lines(&mut self, mut each: impl FnMut(&str)) -> Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.out.read_line(&mut line)? == 0 {
                return Ok(());
            }
            each(line.trim_end());
        }
    }

    /// Reads to the end.
    pub(super) fn drain(&mut self) -> Result<Drained> {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; 1 << 18];
        let mut last = Instant::now();
        loop {
            let count = self.out.read(&mut buffer)?;
            if count == 0 {
                return Ok(Drained { bytes, sha256: hex::encode(hash.finalize()), last });
            }
            hash.update(&buffer[..count]);
            bytes += count as u64;
            last = Instant::now();
        }
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        // Without it the complaint is only shorter.
        drop(self.said.rewind().and_then(|()| self.said.read_to_string(&mut text)));
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Either it has ended already, or it is not wanted any more.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) struct Drained {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    /// When the last byte came.
    pub(super) last: Instant,
}

/// Waits for `ready`, makes `go`, reads all; the time is from `go` to the last byte.
pub(super) fn measure(command: &mut Command, folder: &Path) -> Result<(Drained, Duration)> {
    let mut client = Client::start(command)?;
    client.wait_ready()?;
    File::create(folder.join("go"))?;
    let started = Instant::now();
    let drained = client.drain()?;
    let took = drained.last.duration_since(started);
    Ok((drained, took))
}
