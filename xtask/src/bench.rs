//! `cargo xtask bench`: figures of the real binaries, each beside a peer measured in the same run.
//!
//! A measure is a file below: it prepares, drives the binaries as a person would, and adds rows to the table.
//! The table goes to stdout and to `target/bench/{measure}.json`. What cannot be measured here is a row too,
//! with the reason. `--scale` makes everything smaller: 0.01 is a try-out, 1 is what the aims are about.

#![expect(clippy::print_stdout, reason = "a program for people: it prints")]

mod agent;
mod attach;
mod corpus;
mod latency;
mod logs;
mod product;
mod reconnects;
mod snapshots;
mod sshd;
mod stream;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::build::{self, Binaries, Profile};
use crate::process::Interrupt;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which to run; all unless named.
    measures: Vec<Measure>,
    /// Size of the data, and number of repetitions, relative to what the aims are about.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Which build of the binaries.
    #[arg(long, value_enum, default_value = "dist")]
    profile: Profile,
    /// Only the peers: needs neither of our binaries.
    #[arg(long)]
    peers_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Measure {
    /// 1 GiB of lines from a script to an attached client.
    Logs,
    /// From the script to the client, at 1,000 lines a second.
    Latency,
    /// 1,000 broken connections while logs flow.
    Reconnects,
    /// From the command to the first byte.
    Attach,
    /// Size, memory and processor of an idle agent.
    Agent,
    /// Sending and fetching many small files, and a large one.
    Snapshots,
}

impl Measure {
    const ALL: [Self; 6] =
        [Self::Logs, Self::Latency, Self::Reconnects, Self::Attach, Self::Agent, Self::Snapshots];

    fn name(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Latency => "latency",
            Self::Reconnects => "reconnects",
            Self::Attach => "attach",
            Self::Agent => "agent",
            Self::Snapshots => "snapshots",
        }
    }
}

/// What a measure works with.
struct Bench<'a> {
    root: &'a Path,
    /// For its data; gone at the end.
    place: PathBuf,
    scale: f64,
    binaries: Option<Binaries>,
    interrupt: Interrupt,
    rows: Vec<Row>,
}

/// One figure.
struct Row {
    what: String,
    /// `tpi`, or the peer's name.
    who: &'static str,
    outcome: Outcome,
}

enum Outcome {
    Figure { value: f64, unit: &'static str, aim: Option<Aim> },
    Missing(String),
}

/// What the figure should reach, in its own unit.
#[derive(Clone, Copy)]
enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

impl Bench<'_> {
    /// `full` at the scale of this run.
    fn scaled(&self, full: u64) -> u64 {
        ((full as f64 * self.scale) as u64).max(1)
    }

    /// A folder for one measure.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.place.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    fn row(&mut self, what: &str, who: &'static str, value: f64, unit: &'static str, aim: Option<Aim>) {
        self.rows.push(Row { what: what.to_owned(), who, outcome: Outcome::Figure { value, unit, aim } });
    }

    /// A part of a measure: where it fails, that is its row, and the others go on.
    fn part(&mut self, what: &str, who: &'static str, measure: impl FnOnce(&mut Self) -> Result<()>) {
        if self.interrupt.happened() || (who == "tpi" && self.binaries.is_none()) {
            return;
        }
        println!("… {what} ({who})");
        if let Err(error) = measure(self) {
            println!("SKIPPED: {what} ({who}): {error:#}");
            self.rows.push(Row {
                what: what.to_owned(),
                who,
                outcome: Outcome::Missing(format!("{error:#}")),
            });
        }
    }

    fn binaries(&self) -> Result<&Binaries> {
        self.binaries.as_ref().context("our binaries are left out")
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binaries = if options.peers_only { None } else { Some(build::binaries(root, options.profile)?) };
    // Beside the sources, not in /tmp, which may be memory.
    let out = root.join("target/bench");
    std::fs::create_dir_all(&out)?;
    let place = tempfile::Builder::new().prefix("run-").tempdir_in(&out)?;
    let mut bench = Bench {
        root,
        place: place.path().to_owned(),
        scale: options.scale,
        binaries,
        interrupt: Interrupt::listen()?,
        rows: Vec::new(),
    };
    let chosen = if options.measures.is_empty() { &Measure::ALL[..] } else { &options.measures };
    let mut all = Vec::new();
    for measure in chosen {
        match measure {
            Measure::Logs => logs::measure(&mut bench)?,
            Measure::Latency => latency::measure(&mut bench)?,
            Measure::Reconnects => reconnects::measure(&mut bench)?,
            Measure::Attach => attach::measure(&mut bench)?,
            Measure::Agent => agent::measure(&mut bench)?,
            Measure::Snapshots => snapshots::measure(&mut bench)?,
        }
        let rows = std::mem::take(&mut bench.rows);
        let file = out.join(format!("{}.json", measure.name()));
        let text = serde_json::to_string_pretty(&as_json(*measure, options, &rows))?;
        std::fs::write(&file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
        all.extend(rows);
        if bench.interrupt.happened() {
            break;
        }
    }
    print(&all);
    if bench.interrupt.happened() {
        bail!("interrupted");
    }
    Ok(())
}

fn as_json(measure: Measure, options: &Options, rows: &[Row]) -> serde_json::Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| match &row.outcome {
            Outcome::Figure { value, unit, aim } => json!({
                "what": row.what, "who": row.who, "value": value, "unit": unit,
                "aim": aim.map(Aim::text), "reached": aim.map(|aim| aim.reached(*value)),
            }),
            Outcome::Missing(why) => json!({ "what": row.what, "who": row.who, "missing": why }),
        })
        .collect();
    json!({
        "version": 1,
        "measure": measure.name(),
        "scale": options.scale,
        "profile": options.profile.name(),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "rows": rows,
    })
}

impl Aim {
    fn text(self) -> String {
        match self {
            Self::AtMost(value) => format!("<= {}", figure(value)),
            Self::AtLeast(value) => format!(">= {}", figure(value)),
        }
    }

    fn reached(self, value: f64) -> bool {
        match self {
            Self::AtMost(aim) => value <= aim,
            Self::AtLeast(aim) => value >= aim,
        }
    }
}

fn print(rows: &[Row]) {
    println!("\n{:<46} {:<8} {:>12} {:<7} aim", "what", "who", "figure", "unit");
    for Row { what, who, outcome } in rows {
        match outcome {
            Outcome::Figure { value, unit, aim } => {
                let aim = aim.map_or(String::new(), |aim| {
                    aim.text() + if aim.reached(*value) { "" } else { "  MISSED" }
                });
                println!("{what:<46} {who:<8} {:>12} {unit:<7} {aim}", figure(*value));
            }
            Outcome::Missing(why) => println!("{what:<46} {who:<8} {:>12} {why}", "-"),
        }
    }
}

fn figure(value: f64) -> String {
    if value == value.trunc() || value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// As people say sizes.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{} MiB", figure(mib)) } else { format!("{} GiB", figure(mib / 1024.0)) }
}

/// The value below which this share of `sorted` lies.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}
