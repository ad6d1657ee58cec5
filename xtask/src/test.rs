//! `cargo xtask test`: every test and every check. All that fails is reported together at the end.
//!
//! What the tests run against is set up here, below `target/`, and stopped when they end:
//!
//! | variable | what | without it |
//! |---|---|---|
//! | `TPI_AGENT`, `TPI_CONTROLLER`, `TPI_PROVIDER` | the static binaries | the run fails |
//! | `TPI_TEST_S3_ENDPOINT` | an S3 emulator, [`crate::moto`] | tests of the S3 backend say `SKIPPED` |
//! | `TPI_TEST_AWS_ENDPOINT` | the same emulator, which has the rest of AWS too | tests of the cloud `aws` say `SKIPPED` |
//! | `TPI_TEST_DOCKER_HOST` | a Docker engine with the image `tpi-test:busybox`, [`crate::docker`] | tests of containers say `SKIPPED` |
//! | `TPI_TEST_KERNEL_MACHINE` | with `--slow`: a machine with a kernel, [`crate::kernel_machine`] | its test says `SKIPPED` |
//! | `TPI_TEST_MACHINE_IMAGE` | an image in that engine that boots, [`crate::machine_image`] | tests on the simulated AWS say `SKIPPED` |
//! | `TPI_TEST_MOTO` | the virtual environment of the emulator, of which the simulated AWS starts its own | the same |
//! | `TPI_TEST_AWS_CONTROLLER` | the controller with the cloud `aws` | the same |

#![expect(clippy::print_stdout, reason = "a program for people: it prints")]

mod report;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use self::report::{Report, Summary};
use crate::build::{self, Profile};
use crate::process::{self, Interrupt};
use crate::{docker, kernel_machine, machine_image, moto, tidy};

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only the tests, not the checks of format, lints, layout and features.
    #[arg(long)]
    tests_only: bool,
    /// Only the packages named (`-p tpi-store`); the checks are left out then.
    #[arg(long, short)]
    package: Vec<String>,
    /// Also the test of a machine with a kernel of its own, in an emulator: ten minutes, a gigabyte of packages and disk.
    #[arg(long)]
    slow: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    let interrupt = Interrupt::listen()?;
    let mut summary = Summary::default();
    if !options.tests_only && options.package.is_empty() && options.filter.is_none() {
        quick_checks(root, &interrupt, &mut summary)?;
    }
    tests(root, options, &interrupt, &mut summary)?;
    if !options.tests_only && options.package.is_empty() && options.filter.is_none() {
        lints(root, &interrupt, &mut summary)?;
        dependencies(root, &interrupt, &mut summary)?;
    }
    if interrupt.happened() {
        summary.fail("interrupted", "not everything was run");
    }
    println!("\n{} s", started.elapsed().as_secs());
    Ok(summary.print())
}

/// What needs no build: said first, because it is had first.
fn quick_checks(root: &Path, interrupt: &Interrupt, summary: &mut Summary) -> Result<()> {
    check(
        summary,
        interrupt,
        "format",
        "run `cargo fmt --all`",
        cargo(root, &["fmt", "--all", "--", "--check"]),
    )?;
    heading("tidy");
    let findings = tidy::check(root)?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => summary.pass(),
        count => summary.fail("tidy", &format!("{count} findings above, each with its repair")),
    }
    Ok(())
}

fn tests(root: &Path, options: &Options, interrupt: &Interrupt, summary: &mut Summary) -> Result<()> {
    if interrupt.happened() {
        return Ok(());
    }
    heading("the agent and the controller, static");
    let mut environment: Vec<(&str, OsString)> = Vec::new();
    match build::binaries(root, Profile::Demo) {
        Ok(binaries) => {
            environment.push(("TPI_AGENT", binaries.agent.into()));
            environment.push(("TPI_CONTROLLER", binaries.controller.into()));
            environment.push(("TPI_PROVIDER", binaries.provider.into()));
        }
        Err(error) => summary.fail("build of the static binaries", &format!("{error:#}")),
    }
    heading("what the tests run against");
    std::fs::create_dir_all(root.join("target/tools"))?;
    let emulator = moto::start(root);
    match &emulator {
        Ok(emulator) => {
            println!("AWS emulator  {}", emulator.endpoint);
            environment.push(("TPI_TEST_S3_ENDPOINT", emulator.endpoint.clone().into()));
            environment.push(("TPI_TEST_AWS_ENDPOINT", emulator.endpoint.clone().into()));
            environment.push(("TPI_TEST_MOTO", moto::install(root)?.into()));
        }
        Err(error) => summary.skip("AWS emulator", &format!("{error:#}")),
    }
    let engine = docker::start(root);
    match &engine {
        Ok(engine) => {
            println!("Docker engine {}", engine.host);
            environment.push(("TPI_TEST_DOCKER_HOST", engine.host.clone().into()));
        }
        Err(error) => summary.skip("Docker engine", &format!("{error:#}")),
    }
    let simulated = options.package.is_empty() || options.package.iter().any(|name| name == "tpi-tests");
    if let (Ok(_), Ok(engine), true) = (&emulator, &engine, simulated) {
        simulated_aws(root, engine, interrupt, &mut environment, summary);
    }

    heading("tests");
    let mut command = cargo(root, &["test", "--no-fail-fast"]);
    if options.package.is_empty() {
        command.arg("--workspace");
    }
    for package in &options.package {
        command.args(["--package", package]);
    }
    command.args(&options.filter);
    // The output of tests that passed is wanted for one thing: what they skipped.
    command.args(["--", "--show-output"]).envs(environment.clone());
    cargo_test(root, command, "test.log", interrupt, summary)?;
    if options.package.is_empty() || options.package.iter().any(|package| package == "tpi-controller") {
        aws(root, options, environment.clone(), interrupt, summary)?;
    }
    if options.slow && !interrupt.happened() {
        slow(root, environment, interrupt, summary)?;
    }
    Ok(())
}

/// A machine with a kernel of its own, where the processor is emulated too.
fn slow(
    root: &Path,
    mut environment: Vec<(&str, OsString)>,
    interrupt: &Interrupt,
    summary: &mut Summary,
) -> Result<()> {
    heading("a machine with its own kernel");
    match kernel_machine::prepare(root) {
        Ok(folder) => environment.push(("TPI_TEST_KERNEL_MACHINE", folder.into())),
        Err(error) => {
            summary.skip("a machine with its own kernel", &format!("{error:#}"));
            return Ok(());
        }
    }
    environment.push(("TPI_TEST_PATIENCE", "1800".into()));
    let mut command = cargo(root, &["test", "--package", "tpi-tests", "--test", "own_kernel"]);
    command.args(["--", "--show-output"]).envs(environment);
    cargo_test(root, command, "test-slow.log", interrupt, summary)
}

/// What the simulated AWS needs beside an engine and an emulator.
fn simulated_aws(
    root: &Path,
    engine: &docker::Engine,
    interrupt: &Interrupt,
    environment: &mut Vec<(&str, OsString)>,
    summary: &mut Summary,
) {
    match machine_image::import(root, engine) {
        Ok(image) => {
            println!("machine       {image}");
            environment.push(("TPI_TEST_MACHINE_IMAGE", image.into()));
        }
        Err(error) => {
            summary.skip("machines of the simulated AWS", &format!("{error:#}"));
            return;
        }
    }
    if interrupt.happened() {
        return;
    }
    heading("the controller with the cloud aws");
    match build::aws_controller(root) {
        Ok(controller) => environment.push(("TPI_TEST_AWS_CONTROLLER", controller.into())),
        Err(error) => summary.fail("build of the controller with the cloud aws", &format!("{error:#}")),
    }
}

/// The cloud that no default build carries, because its SDK takes minutes to compile.
fn aws(
    root: &Path,
    options: &Options,
    environment: Vec<(&str, OsString)>,
    interrupt: &Interrupt,
    summary: &mut Summary,
) -> Result<()> {
    if interrupt.happened() {
        return Ok(());
    }
    heading("tests of the cloud aws");
    let package = ["--package", "tpi-controller", "--features", "aws"];
    let mut command =
        cargo(root, &[&["test", "--no-fail-fast"], &package[..], &["--lib", "--test", "aws"]].concat());
    command.args(&options.filter);
    command.args(["--", "--show-output"]).envs(environment);
    cargo_test(root, command, "test-aws.log", interrupt, summary)
}

/// Runs it with its whole output in a file below `target` and the part worth reading on the terminal.
fn cargo_test(
    root: &Path,
    mut command: Command,
    log_name: &str,
    interrupt: &Interrupt,
    summary: &mut Summary,
) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut log = std::fs::File::create(root.join("target").join(log_name))?;
    let (report, status) = std::thread::scope(|scope| {
        let reading = scope.spawn(move || -> Result<Report> {
            let mut report = Report::default();
            for line in BufReader::new(reader).split(b'\n') {
                let line = line?;
                log.write_all(&line)?;
                log.write_all(b"\n")?;
                if let Some(shown) = report.line(&String::from_utf8_lossy(&line)) {
                    println!("{shown}");
                }
            }
            Ok(report)
        });
        let status = interrupt.run(&mut command);
        // Our ends of the pipe: the reader ends when the last one is closed.
        drop(command);
        let report = reading.join().map_err(|_| anyhow::anyhow!("reading the output of cargo test failed"));
        (report, status)
    });
    let (report, status) = (report??, status?);
    let complete = report.failed() > 0 || status.success();
    summary.tests(report);
    if !complete {
        summary.fail("cargo test", &format!("{status}; its whole output is in target/{log_name}"));
    }
    Ok(())
}

/// Every combination of features that is shipped or taught, without warnings.
fn lints(root: &Path, interrupt: &Interrupt, summary: &mut Summary) -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    let clippy = |arguments: &[&str]| cargo(root, &[&["clippy", "--quiet"], arguments, &deny].concat());
    let fix = "repair what is named above; where a lint is wrong, `#[expect(…, reason = …)]`";
    check(summary, interrupt, "clippy", fix, clippy(&["--workspace", "--all-targets"]))?;
    let alone = ["--package", "tpi-controller", "--no-default-features"];
    check(summary, interrupt, "clippy without a cloud", fix, clippy(&alone))?;
    for cloud in clouds(root)? {
        if build::WITH_SDK.contains(&cloud.as_str()) {
            let lint = build::linted(root, &["--package", "tpi-controller", "--features", &cloud]);
            check(summary, interrupt, &format!("clippy with the cloud {cloud}"), fix, lint)?;
        } else {
            let one = [&alone[..], &["--features", &cloud]].concat();
            check(summary, interrupt, &format!("clippy with the cloud {cloud} alone"), fix, clippy(&one))?;
        }
    }
    Ok(())
}

/// The controller's features, each of which is a cloud.
fn clouds(root: &Path) -> Result<Vec<String>> {
    let metadata =
        process::quietly(&mut cargo(root, &["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let controller = packages.filter(|package| package["name"] == "tpi-controller");
    let features = controller.filter_map(|package| package["features"].as_object()).flatten();
    Ok(features.map(|(name, _)| name.clone()).filter(|name| name != "default").collect())
}

fn dependencies(root: &Path, interrupt: &Interrupt, summary: &mut Summary) -> Result<()> {
    if process::quietly(&mut cargo(root, &["deny", "--version"])).is_err() {
        summary.skip("cargo deny", "it is not installed (`cargo install --locked cargo-deny`); tidy has compared Cargo.lock with the crates that deny.toml bans");
        return Ok(());
    }
    let fix = "deny.toml says why each is refused";
    let offline = cargo(root, &["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    check(summary, interrupt, "cargo deny", fix, offline)?;
    match process::quietly(&mut cargo(root, &["deny", "fetch", "db"])) {
        Ok(_) => {
            let command = cargo(root, &["deny", "check", "advisories"]);
            check(
                summary,
                interrupt,
                "cargo deny: advisories",
                "update the crate, or note in deny.toml why it does not concern us",
                command,
            )
        }
        Err(error) => {
            summary
                .skip("cargo deny: advisories", &format!("the advisory database cannot be had: {error:#}"));
            Ok(())
        }
    }
}

fn check(
    summary: &mut Summary,
    interrupt: &Interrupt,
    name: &str,
    fix: &str,
    mut command: Command,
) -> Result<()> {
    if interrupt.happened() {
        return Ok(());
    }
    heading(name);
    let status = interrupt.run(&mut command)?;
    if status.success() {
        summary.pass();
    } else {
        summary.fail(name, fix);
    }
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = build::cargo(root);
    command.args(arguments);
    command
}

fn heading(text: &str) {
    println!("\n== {text}");
}
