//! `tpi-agent`: see the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tpi_agent::{
    config::{self, TestHooks},
    supervisor::End,
};
use tracing_subscriber::EnvFilter;

/// Runs a task on the machine that it is started on.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a slot of the task and work on it until it ends. Exit codes: 0 done and given back, 1 never held a
    /// slot, 75 another machine continues.
    Run {
        /// What the machine was told at boot.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// The slot is for another machine: come again (`EX_TEMPFAIL`).
const ANOTHER_CONTINUES: u8 = 75;

/// Large blocks go back to the system as soon as they are free, and all threads share two heaps. By default each
/// thread would keep tens of MiB of what once was a chunk of a file.
const MEMORY: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "262144"), ("MALLOC_ARENA_MAX", "2")];

/// Starts this program again with [`MEMORY`], which the allocator reads when a process begins. Same process, same
/// arguments; where that is not possible, it goes on as it is.
fn spare_memory() {
    use std::os::unix::process::CommandExt as _;
    if MEMORY.iter().all(|(name, _)| std::env::var_os(name).is_some()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Only returns when it fails.
    let _not_possible = again.args(arguments).envs(MEMORY).exec();
}

fn main() -> ExitCode {
    spare_memory();
    // Only fails when one is installed already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let filter = EnvFilter::try_from_env("TPI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let Command::Run { config } = Arguments::parse().command;
    match run(&config) {
        Ok(End::Finished) => ExitCode::SUCCESS,
        Ok(End::Interrupted | End::Superseded) => ExitCode::from(ANOTHER_CONTINUES),
        Err(error) => {
            tracing::error!("{}", tpi_proto::fault::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path) -> Result<End, Box<dyn std::error::Error>> {
    let config = config::load(path)?;
    // Few threads: each costs memory of its own, and the machine is the script's.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()?;
    let end = runtime.block_on(tpi_agent::run(config, TestHooks::from_environment()))?;
    // A probe that hangs in the kernel must not keep the machine.
    runtime.shutdown_background();
    Ok(end)
}
