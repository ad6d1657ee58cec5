//! The agent while its script does nothing: size, memory, processor.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::product::{self, Product};
use super::stream::{self, Client};
use super::{Aim, Bench};
use crate::process;

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let folder = bench.folder("agent")?;
    bench.part("idle agent", "tpi", |bench| {
        let mut product = Product::new(bench, "agent")?;
        let size = std::fs::metadata(product.agent())?.len() as f64 / f64::from(1 << 20);
        bench.row("size of the agent", "tpi", size, "MiB", Some(Aim::AtMost(12.0)));

        stream::script(&folder, "true")?;
        product.submit("agent", &["--script", &folder.join("script.sh").to_string_lossy()])?;
        Client::start(&mut product.command(&["attach", "agent"]))?.wait_ready()?;
        let agent = product.wait_agent()?;
        let seconds = (60.0 * bench.scale).clamp(5.0, 60.0);
        let before = product::processor(agent)?;
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs_f64(seconds) && !bench.interrupt.happened() {
            process::pause();
        }
        let share = (product::processor(agent)? - before) / started.elapsed().as_secs_f64() * 100.0;
        bench.row("idle processor, of one core", "tpi", share, "%", None);
        bench.row("idle memory", "tpi", product::memory(agent, "VmRSS")?, "MiB", Some(Aim::AtMost(20.0)));
        Ok(())
    });
    Ok(())
}
