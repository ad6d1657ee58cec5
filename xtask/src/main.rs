//! `cargo xtask …`: what people and CI run. Each command does its own set-up, below `target/`, and changes
//! nothing of the user's system.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people: it prints")]

mod bench;
mod build;
mod codegen;
mod debian;
mod demo;
mod dist;
mod docker;
mod machine_image;
mod moto;
mod process;
mod sim;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What people and CI run.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build what a demonstration needs, train a small network on the local cloud and bring its results home.
    Demo(demo::Options),
    /// Run every test and check, and report all that failed together.
    Test(test::Options),
    /// What `.ci/run` runs: `test`, with nobody at the keyboard.
    Ci,
    /// Write the Rust side of the .proto files, which is checked in.
    Codegen(codegen::Options),
    /// Measure, beside a peer, and write `target/bench/*.json`.
    Bench(bench::Options),
    /// Run a simulated cloud, to try things by hand.
    Sim(sim::Options),
    /// Build what is shipped, with its checksums.
    Dist,
    /// Check the rules of the layout that the compiler cannot see.
    Tidy,
}

fn main() -> ExitCode {
    let root = root();
    match run(&root, Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(options) => demo::run(root, &options)?,
        Command::Test(options) => return test::run(root, &options),
        Command::Ci => return test::run(root, &test::Options::default()),
        Command::Codegen(options) => codegen::run(root, &options)?,
        Command::Bench(options) => bench::run(root, &options)?,
        Command::Sim(options) => return sim::run(root, &options),
        Command::Dist => dist::run(root)?,
        Command::Tidy => tidy::run(root)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The top of the checkout: cargo says where this package is when it runs it, and the binary remembers where
/// it was built for the case that it is started by hand.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_owned)
}
