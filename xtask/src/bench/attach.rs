//! Attaching: from starting the command to the first byte of a script that has printed already.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::product::Product;
use super::stream::{self, Client};
use super::{Aim, Bench, percentile, sshd};

const WHAT: &str = "attach to first byte";

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let folder = bench.folder("attach")?;
    let count = bench.scaled(100).max(5);
    stream::script(&folder, "true")?;
    let script = folder.join("script.sh").to_string_lossy().into_owned();
    bench.part(WHAT, "ssh", |bench| {
        let sshd = sshd::start(bench.root)?;
        let command = format!("echo {}", stream::READY);
        rows(bench, "ssh", count, || sshd.ssh(&command))
    });
    bench.part(WHAT, "tpi", |bench| {
        let mut product = Product::new(bench, "attach")?;
        product.submit("attach", &["--script", &script])?;
        Client::start(&mut product.command(&["attach", "attach"]))?.wait_ready()?;
        rows(bench, "tpi", count, || Ok(product.command(&["attach", "attach"])))
    });
    Ok(())
}

fn rows(
    bench: &mut Bench<'_>,
    who: &'static str,
    count: u64,
    command: impl Fn() -> Result<Command>,
) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..count {
        let mut command = command()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn()?;
        let read = child.stdout.take().context("no stdout")?.read(&mut [0]);
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        child.kill()?;
        child.wait()?;
        if read? == 0 {
            bail!("the command ended without a byte");
        }
    }
    times.sort_by(f64::total_cmp);
    let aim = (who == "tpi").then_some(Aim::AtMost(100.0));
    bench.row(&format!("{WHAT}, p50"), who, percentile(&times, 0.5), "ms", aim);
    bench.row(&format!("{WHAT}, p99"), who, percentile(&times, 0.99), "ms", None);
    Ok(())
}
