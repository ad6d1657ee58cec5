//! GPUs, as `nvidia-smi` reports them, where it is there.
//!
//! It runs as one process that prints every second; when it hangs or dies only the GPU's part of the samples is
//! missing.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};
use tokio_util::task::AbortOnDropHandle;
use tpi_store::telemetry::GpuSample;

use crate::exec::leftovers::SHELL_MARK;

const FIELDS: &str = "index,name,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu";
/// Age at which a card's last values are not shown any more.
const STALE: Duration = Duration::from_secs(5);
/// Pause before the program is started again.
const AGAIN: Duration = Duration::from_secs(30);

type Latest = Arc<Mutex<Vec<(Instant, GpuSample)>>>;

/// Follows the cards. Dropping it ends the program.
pub(super) struct Watcher {
    latest: Latest,
    /// Aborted on drop; absent where there is no `nvidia-smi`.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Watcher {
    pub(super) fn start() -> Self {
        let latest = Latest::default();
        let present = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join("nvidia-smi").is_file()));
        let task = present.then(|| AbortOnDropHandle::new(tokio::spawn(follow(Arc::clone(&latest)))));
        Self { latest, _task: task }
    }

    /// The newest values of each card.
    pub(super) fn latest(&self) -> Vec<GpuSample> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().filter(|(at, _)| at.elapsed() < STALE).map(|(_, card)| card.clone()).collect()
    }
}

async fn follow(latest: Latest) {
    loop {
        let child = Command::new("nvidia-smi")
            .arg(format!("--query-gpu={FIELDS}"))
            .args(["--format=csv,noheader,nounits", "-l", "1"])
            .env(SHELL_MARK, "probe")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(mut child) => {
                if let Some(stdout) = child.stdout.take() {
                    let mut lines = BufReader::new(stdout).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        keep(&latest, parse(&line));
                    }
                }
                drop(child.kill().await);
            }
            Err(error) => tracing::warn!(%error, "starting nvidia-smi"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn keep(latest: &Latest, card: Option<GpuSample>) {
    let Some(card) = card else { return };
    let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    match latest.iter_mut().find(|(_, old)| old.index == card.index) {
        Some(entry) => *entry = (now, card),
        None => latest.push((now, card)),
    }
}

/// One line. Values that the card does not know are zero.
fn parse(line: &str) -> Option<GpuSample> {
    const MIB: f64 = 1_048_576.0;
    let mut fields = line.split(',').map(str::trim);
    let index = fields.next()?.parse().ok()?;
    let name = fields.next()?.to_owned();
    let mut number = || fields.next().and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let utilisation = number() / 100.0;
    let (used, total) = (number() * MIB, number() * MIB);
    let (power_watts, temperature_celsius) = (number(), number());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    let (memory_used, memory_total) = (used as u64, total as u64);
    Some(GpuSample {
        index,
        name,
        utilisation,
        memory_used,
        memory_total,
        power_watts,
        temperature_celsius,
        processes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_nvidia_smi_is_read() {
        let card = parse("0, Tesla T4, 37, 1024, 15360, 27.31, 54").expect("parses");
        assert_eq!((card.index, card.name.as_str(), card.memory_used), (0, "Tesla T4", 1 << 30));
        assert!((card.utilisation - 0.37).abs() < 1e-9);
        assert!(parse("1, A100, [N/A], 5, 10, [N/A], 40").is_some_and(|c| c.power_watts == 0.0));
        assert_eq!(parse("No devices were found"), None);
    }
}
