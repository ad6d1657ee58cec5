//! Latency: a script prints the time a thousand times a second; how old is each line when it comes?

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use super::product::Product;
use super::stream::{self, Client};
use super::{Aim, Bench, percentile, sshd};
use crate::process;

/// Prints its clock in nanoseconds every millisecond, `count` times.
const CLOCK: &str = "
import sys, time
start = time.monotonic()
for n in range(COUNT):
    time.sleep(max(0, start + n / 1000 - time.monotonic()))
    sys.stdout.write(f'{time.time_ns()}\\n')
    sys.stdout.flush()
";

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let folder = bench.folder("latency")?;
    let count = bench.scaled(20_000).max(1000);
    std::fs::write(folder.join("clock.py"), CLOCK.replace("COUNT", &count.to_string()))?;
    let python = process::found("python3").context("the clock of this measure needs python3")?;
    let then = format!("exec '{}' '{}'", python.display(), folder.join("clock.py").display());
    let script = folder.join("script.sh").to_string_lossy().into_owned();

    bench.part("line latency at 1,000 lines/s", "ssh", |bench| {
        stream::script(&folder, &then)?;
        let sshd = sshd::start(bench.root)?;
        rows(bench, "ssh", &mut sshd.ssh(&script)?, &folder, count)
    });
    bench.part("line latency at 1,000 lines/s", "tpi", |bench| {
        stream::script(&folder, &then)?;
        let mut product = Product::new(bench, "latency")?;
        product.submit("latency", &["--script", &script])?;
        rows(bench, "tpi", &mut product.command(&["attach", "latency"]), &folder, count)
    });
    Ok(())
}

fn rows(
    bench: &mut Bench<'_>,
    who: &'static str,
    command: &mut Command,
    folder: &Path,
    count: u64,
) -> Result<()> {
    let mut client = Client::start(command)?;
    client.wait_ready()?;
    File::create(folder.join("go"))?;
    let mut ages = Vec::new();
    client.lines(|line| {
        if let (Ok(written), Ok(now)) = (line.parse::<u128>(), SystemTime::now().duration_since(UNIX_EPOCH)) {
            ages.push((now.as_nanos() as f64 - written as f64) / 1e6);
        }
    })?;
    if ages.len() as u64 != count {
        bail!("{} lines came of {count}", ages.len());
    }
    ages.sort_by(f64::total_cmp);
    let aim = (who == "tpi").then_some(Aim::AtMost(10.0));
    bench.row("line latency at 1,000 lines/s, p50", who, percentile(&ages, 0.5), "ms", None);
    bench.row("line latency at 1,000 lines/s, p99", who, percentile(&ages, 0.99), "ms", aim);
    Ok(())
}
