//! `cargo xtask demo`: from a fresh clone to a trained network brought home, on the local cloud.
//!
//! Everything happens in a temporary folder: the work directory is a copy of `examples/hello-train`, and the
//! local cloud has its state beside it. However it ends, the task is destroyed first.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Binaries, Profile};
use crate::process::{self, Interrupt};

const NAME: &str = "hello-train";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many epochs to train.
    #[arg(long, default_value_t = 60)]
    epochs: u32,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let started = Instant::now();
    require_python()?;
    println!("building the agent and the controller (the first time takes some minutes)");
    let binaries = build::binaries(root, Profile::Demo)?;
    let place = tempfile::Builder::new().prefix("tpi-demo-").tempdir().context("making a folder")?;
    let demo = Demo { binaries, place: place.path().to_owned(), interrupt: Interrupt::listen()? };
    copy(&root.join("examples").join(NAME), &demo.workdir())?;

    let running = Instant::now();
    let shown = demo.show(options.epochs);
    let took = running.elapsed();
    if let Err(error) = demo.destroy() {
        // Whatever is left can only be found with the state: keep it.
        let kept = place.keep();
        return Err(error.context(format!("the demo's state is kept in {}", kept.display())));
    }
    shown?;
    println!();
    println!("build  {}", seconds(demo.binaries.took));
    println!("run    {}", seconds(took));
    println!("total  {}", seconds(started.elapsed()));
    Ok(())
}

struct Demo {
    binaries: Binaries,
    place: PathBuf,
    interrupt: Interrupt,
}

impl Demo {
    fn workdir(&self) -> PathBuf {
        self.place.join(NAME)
    }

    /// Submit, watch, look: `submit` follows the task to its end and brings the results home.
    fn show(&self, epochs: u32) -> Result<()> {
        let epochs = format!("EPOCHS={epochs}");
        let files = ["--workdir", ".", "--results", "results", "--script", "train.sh"];
        self.step(&[&["submit", "--name", NAME, "--environment", &epochs][..], &files].concat())?;

        println!("\n$ cat results/metrics.json");
        let metrics = self.workdir().join("results/metrics.json");
        let text = std::fs::read_to_string(&metrics)
            .context("the task ended well, yet results/metrics.json did not come home")?;
        print!("{text}");
        println!("\n$ find results -type f");
        let mut files = Vec::new();
        list(&self.workdir(), Path::new("results"), &mut files)?;
        files.sort();
        for (file, size) in files {
            println!("{size:>8}  {}", file.display());
        }
        Ok(())
    }

    fn step(&self, arguments: &[&str]) -> Result<()> {
        println!("\n$ tpi-controller {}", arguments.join(" "));
        let status = self.interrupt.run(&mut self.controller(arguments))?;
        if self.interrupt.happened() {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("`tpi-controller {}` failed: {status}", arguments.join(" "));
        }
        Ok(())
    }

    /// In a process group of its own: a second Ctrl-C must not stop the cleaning up.
    fn destroy(&self) -> Result<()> {
        println!("\n$ tpi-controller destroy {NAME}");
        let status = self.controller(&["destroy", NAME]).process_group(0).status()?;
        match status.code() {
            // 7, not found: the submit failed before it had recorded anything.
            Some(0 | 7) => Ok(()),
            Some(_) | None => bail!("`tpi-controller destroy {NAME}` failed: {status}"),
        }
    }

    fn controller(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.controller);
        command
            .current_dir(self.workdir())
            .env("TPI_STATE_DIR", self.place.join("state"))
            .env("TPI_AGENT", &self.binaries.agent)
            .args(arguments);
        command
    }
}

/// The script looks for Python in the same places.
fn require_python() -> Result<()> {
    let fixed = ["/usr/bin/python3", "/usr/local/bin/python3"];
    if process::found("python3").is_none() && !fixed.iter().any(|path| Path::new(path).is_file()) {
        bail!(
            "hello-train is written in Python and there is no python3: install it (Debian, Ubuntu: apt-get install python3) and run the demo again"
        );
    }
    Ok(())
}

/// What a person would check out: results of an earlier run by hand stay behind.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_file() {
            std::fs::copy(&source, &target).with_context(|| format!("copying {}", source.display()))?;
        } else if ![OsStr::new("results"), OsStr::new("__pycache__")].contains(&entry.file_name().as_os_str())
        {
            copy(&source, &target)?;
        }
    }
    Ok(())
}

fn list(root: &Path, below: &Path, into: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, into)?;
        } else {
            into.push((path, entry.metadata()?.len()));
        }
    }
    Ok(())
}

fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02.0} s", seconds as u64 / 60, seconds % 60.0)
    }
}
