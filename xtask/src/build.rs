//! The binaries, all static, from one cargo invocation that shares their dependencies.
//!
//! They have a target folder of their own: the static flag is in `RUSTFLAGS`, and a target folder whose
//! `RUSTFLAGS` change is built anew each time. Only the features named here are built, so no cloud's SDK is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a build is for. Each is a profile of the workspace's Cargo.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Built in minutes, quick enough to use.
    Demo,
    /// What is shipped.
    Dist,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Dist => "dist",
        }
    }
}

pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) controller: PathBuf,
    /// What Terraform starts.
    pub(crate) provider: PathBuf,
    pub(crate) took: Duration,
}

/// Builds them. `--target` is named, though it is the host's own, so that build scripts and procedural
/// macros are not linked statically (they could not be loaded).
pub(crate) fn binaries(root: &Path, profile: Profile) -> Result<Binaries> {
    let target = host_target(root)?;
    let folder = root.join("target/static");
    let started = Instant::now();
    let status = cargo(root)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .args(["build", "--locked", "--profile", profile.name(), "--target", &target, "--target-dir"])
        .arg(&folder)
        .args(["--package", "tpi-agent", "--package", "tpi-controller"])
        .args(["--no-default-features", "--features", "tpi-controller/local"])
        .args(["--bin", "tpi-agent", "--bin", "tpi-controller", "--bin", "terraform-provider-iterative"])
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("building tpi-agent and tpi-controller failed");
    }
    let out = folder.join(&target).join(profile.name());
    Ok(Binaries {
        agent: out.join("tpi-agent"),
        controller: out.join("tpi-controller"),
        provider: out.join("terraform-provider-iterative"),
        took: started.elapsed(),
    })
}

/// The controller with the cloud `aws`, as tests build it: its SDK takes minutes the first time. Put aside, because
/// the next build of the controller takes its place.
pub(crate) fn aws_controller(root: &Path) -> Result<PathBuf> {
    let mut command = cargo(root);
    command.args(["build", "--locked", "--package", "tpi-controller", "--features", "aws"]);
    command.args(["--bin", "tpi-controller", "--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("building tpi-controller with the cloud aws failed");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo names no executable")?;
    let place = root.join("target/tools/aws");
    std::fs::create_dir_all(&place)?;
    let copy = place.join("tpi-controller");
    // Something may still run the old one.
    let new = place.join("tpi-controller.new");
    std::fs::copy(&built, &new)?;
    std::fs::rename(&new, &copy)?;
    Ok(copy)
}

/// Clouds with an SDK that takes minutes to compile.
pub(crate) const WITH_SDK: [&str; 1] = ["aws"];

/// A build with clippy in the place of the compiler for our own packages, warnings denied. What they depend on is
/// taken as it was built for the tests; `cargo clippy` would go through a whole SDK once more.
pub(crate) fn linted(root: &Path, arguments: &[&str]) -> Command {
    let mut command = cargo(root);
    command.args(["build", "--quiet"]).args(arguments);
    let beside = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("clippy-driver"));
    let driver = beside.filter(|path| path.exists()).unwrap_or_else(|| "clippy-driver".into());
    command.env("RUSTC_WORKSPACE_WRAPPER", driver);
    // How `cargo clippy` hands a lint level on.
    command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    command
}

/// The cargo that runs us, so that a toolchain chosen with `cargo +…` stays chosen; without what it told us
/// about our own package, which build scripts would take for a reason to run again.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_")
            || told.starts_with("CARGO_MANIFEST_")
            || told.starts_with("CARGO_BIN_")
        {
            command.env_remove(&name);
        }
    }
    command.current_dir(root).stdin(Stdio::null());
    command
}

fn host_target(root: &Path) -> Result<String> {
    let output = Command::new("rustc").current_dir(root).arg("-vV").output().context("starting rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}
