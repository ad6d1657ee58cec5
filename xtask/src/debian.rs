//! Programs from Debian packages, without installing them: downloaded and unpacked below `target/tools`.
//!
//! apt keeps its lists and its cache below `target/tools` too, so none of this needs root or changes the system.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{found, quietly};

/// Why packages cannot be had here; `None` when they can.
pub(crate) fn unavailable() -> Option<&'static str> {
    if found("apt-get").is_none() || found("dpkg").is_none() {
        return Some("this is not Debian or Ubuntu (no apt-get and dpkg)");
    }
    None
}

/// Unpacks `packages` (no dependencies: name those that matter) into `target/tools/{name}` and returns that
/// folder. Does nothing when it was done before. `optional` packages may not exist in this release.
pub(crate) fn unpack(root: &Path, name: &str, packages: &[&str], optional: &[&str]) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let folder = tools.join(name);
    let wanted = [packages, optional].concat().join(" ");
    let done = folder.join(".unpacked");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == wanted) {
        return Ok(folder);
    }
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    let archives = tools.join(format!("{name}.debs"));
    for stale in [&folder, &archives] {
        if stale.exists() {
            std::fs::remove_dir_all(stale)?;
        }
    }
    std::fs::create_dir_all(&folder)?;
    std::fs::create_dir_all(&archives)?;

    update(&tools)?;
    quietly(apt(&tools).current_dir(&archives).arg("download").args(packages))
        .with_context(|| format!("downloading the packages {}", packages.join(", ")))?;
    for package in optional {
        // Absent from this release: the caller copes.
        drop(quietly(apt(&tools).current_dir(&archives).arg("download").arg(package)));
    }
    for archive in std::fs::read_dir(&archives)? {
        quietly(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(&folder))?;
    }
    std::fs::remove_dir_all(&archives)?;
    std::fs::write(done, wanted)?;
    Ok(folder)
}

/// The same with everything that the packages need and this system has not installed.
pub(crate) fn unpack_with_dependencies(root: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    if let Some(why) = unavailable() {
        bail!("{why}");
    }
    let tools = root.join("target/tools");
    update(&tools)?;
    let told = quietly(apt(&tools).args(["--simulate", "--no-install-recommends", "install"]).args(packages))
        .with_context(|| format!("asking what {} needs", packages.join(", ")))?;
    let mut wanted: Vec<&str> =
        told.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
    wanted.sort_unstable();
    if wanted.is_empty() {
        // Nothing to unpack: all of it is installed.
        let folder = tools.join(name);
        std::fs::create_dir_all(&folder)?;
        return Ok(folder);
    }
    unpack(root, name, &wanted, &[])
}

/// `file` of an unpacked folder, wherever the release keeps its binaries.
pub(crate) fn binary(folder: &Path, file: &str) -> Result<PathBuf> {
    ["usr/bin", "usr/sbin", "bin", "sbin"]
        .iter()
        .map(|place| folder.join(place).join(file))
        .find(|path| path.is_file())
        .with_context(|| format!("{file} is not in the packages unpacked in {}", folder.display()))
}

/// `PATH` and `LD_LIBRARY_PATH` for programs of an unpacked folder.
pub(crate) fn environment(folder: &Path, command: &mut Command) {
    let own = ["usr/bin", "usr/sbin", "bin", "sbin"].map(|place| folder.join(place));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all: Vec<_> = own.into_iter().chain(std::env::split_paths(&path)).collect();
    if let Ok(joined) = std::env::join_paths(all) {
        command.env("PATH", joined);
    }
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|place| folder.join(place).join(&machine));
    if let Ok(joined) = std::env::join_paths(libraries) {
        command.env("LD_LIBRARY_PATH", joined);
    }
}

/// Once per run is enough, and once per checkout if nothing has moved since: the mark is the lists' own folder.
fn update(tools: &Path) -> Result<()> {
    let day = std::time::Duration::from_secs(24 * 3600);
    let mark = tools.join("apt/updated");
    let fresh = mark
        .metadata()
        .and_then(|data| data.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < day));
    if fresh {
        return Ok(());
    }
    std::fs::create_dir_all(tools.join("apt/lists/partial"))?;
    std::fs::create_dir_all(tools.join("apt/cache/archives/partial"))?;
    quietly(apt(tools).arg("update")).context("reading the package lists")?;
    std::fs::write(mark, "")?;
    Ok(())
}

fn apt(tools: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let apt = tools.join("apt");
    command
        .env("LC_ALL", "C.UTF-8")
        .arg("-qq")
        .arg("-o")
        .arg(format!("Dir::State::lists={}", apt.join("lists").display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}", apt.join("cache").display()))
        // Reading as another user would need a folder that user can enter; a checkout may be private.
        .args(["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=true", "-o", "Acquire::Retries=2"]);
    command
}
