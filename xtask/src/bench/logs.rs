//! Throughput: a script writes 1 GiB of 100-byte lines, a client reads them all and compares the hash.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::corpus::{self, LINE};
use super::product::{self, Product};
use super::{Aim, Bench, size, sshd, stream};
use crate::docker;
use crate::process::quietly;

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let folder = bench.folder("logs")?;
    let count = bench.scaled((1 << 30) / LINE);
    let what = format!("log throughput, {} of 100-byte lines", size(count * LINE));
    let what = what.as_str();
    let data = folder.join("lines");
    let expected = corpus::lines(&data, count)?;
    let show = format!("cat '{}'", data.display());
    stream::script(&folder, &show)?;

    let mut peer = None;
    bench.part(what, "ssh", |bench| {
        let sshd = sshd::start(bench.root)?;
        let rate =
            rate(&mut sshd.ssh(&folder.join("script.sh").to_string_lossy())?, &folder, count, &expected)?;
        peer = Some(rate);
        bench.row(what, "ssh", rate, "MiB/s", None);
        Ok(())
    });

    bench.part(what, "docker", |bench| {
        let engine = docker::start(bench.root)?;
        // The same place inside, since the script names it.
        let mount = format!("{0}:{0}", folder.display());
        stream::script(&folder, &show)?;
        let script = folder.join("script.sh").to_string_lossy().into_owned();
        let run = ["run", "--detach", "--network", "none", "--volume", &mount, docker::IMAGE, &script];
        let id = quietly(engine.client().args(run))?;
        let rate = rate(engine.client().args(["logs", "--follow", id.trim()]), &folder, count, &expected);
        drop(quietly(engine.client().args(["rm", "--force", "--volumes", id.trim()])));
        bench.row(what, "docker", rate?, "MiB/s", None);
        Ok(())
    });

    bench.part(what, "tpi", |bench| {
        let mut product = Product::new(bench, "logs")?;
        stream::script(&folder, &show)?;
        product.submit("logs", &["--script", &folder.join("script.sh").to_string_lossy()])?;
        let agent = product.wait_agent()?;
        let rate = rate(&mut product.command(&["attach", "logs"]), &folder, count, &expected)?;
        bench.row(what, "tpi", rate, "MiB/s", peer.map(Aim::AtLeast));
        // The machine may be gone with its task by now, which is as it should be.
        if let Ok(most) = product::memory(agent, "VmHWM") {
            bench.row("agent's most memory meanwhile", "tpi", most, "MiB", Some(Aim::AtMost(64.0)));
        }
        Ok(())
    });
    Ok(())
}

/// MiB per second, for bytes that all came and are the right ones.
fn rate(command: &mut Command, folder: &Path, count: u64, expected: &str) -> Result<f64> {
    let (drained, took) = stream::measure(command, folder)?;
    if drained.bytes != count * LINE {
        bail!("{} bytes came of {}", drained.bytes, count * LINE);
    }
    if drained.sha256 != expected {
        bail!("other bytes came than were written");
    }
    Ok(drained.bytes as f64 / f64::from(1 << 20) / took.as_secs_f64())
}
