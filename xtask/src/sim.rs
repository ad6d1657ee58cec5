//! `cargo xtask sim aws`: the simulated AWS of the tests, for a person: it prints what to export, and runs until
//! Ctrl-C.

#![expect(clippy::print_stdout, reason = "a program for people: it prints")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::process::Interrupt;
use crate::{docker, machine_image, moto};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which.
    cloud: Cloud,
    /// Build the programs as well: a static agent, and the controller with the cloud `aws`.
    #[arg(long)]
    build: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Cloud {
    /// Its API with an emulator behind it, and machines that boot.
    Aws,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let Cloud::Aws = options.cloud;
    let interrupt = Interrupt::listen()?;
    std::fs::create_dir_all(root.join("target/tools"))?;
    println!(
        "getting the emulator, an engine and the image of a machine (the first time takes some minutes)"
    );
    let emulator = moto::install(root)?;
    let engine = docker::start(root)?;
    let image = machine_image::import(root, &engine)?;
    if options.build {
        let binaries = build::binaries(root, Profile::Demo)?;
        let controller = build::aws_controller(root)?;
        println!("export TPI_AGENT={}", binaries.agent.display());
        println!("alias tpi-controller={}", controller.display());
    }
    let mut command = build::cargo(root);
    command
        .args(["run", "--quiet", "--package", "tpi-tests", "--bin", "simulated-aws"])
        .env("TPI_TEST_MOTO", emulator)
        .env("TPI_TEST_DOCKER_HOST", &engine.host)
        .env("TPI_TEST_MACHINE_IMAGE", image);
    let status = interrupt.run(&mut command)?;
    Ok(if status.success() || interrupt.happened() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
