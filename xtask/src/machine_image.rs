//! The image that machines of the simulated AWS boot from: systemd and cloud-init as Debian ships them.
//!
//! Made once per recipe, as a tar below `target/tools`, by mmdebstrap, which itself comes from its package and needs
//! root. No registry of images is asked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::debian;
use crate::docker::Engine;
use crate::process::{found, quietly};

const SUITE: &str = "bookworm";
/// What AWS's images of Debian and Ubuntu have too, as far as a task's user-data can tell.
const PACKAGES: &str = "systemd-sysv,cloud-init,iproute2,ca-certificates,curl,udev,dbus,python3,procps";
const CUSTOMIZE: &str = include_str!("machine_image/customize.sh");
/// What nobody reads in a machine of a test is not even unpacked.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// Makes the image where it is not made yet, and gives its name in the engine.
pub(crate) fn import(root: &Path, engine: &Engine) -> Result<String> {
    let (archive, version) = make(root)?;
    let name = format!("tpi-test:machine-{version}");
    if quietly(engine.client().args(["image", "inspect", &name])).is_err() {
        quietly(engine.client().arg("import").arg(&archive).arg(&name))
            .context("importing the image of a machine")?;
    }
    Ok(name)
}

/// The tar, and what it is the only one of.
fn make(root: &Path) -> Result<(PathBuf, String)> {
    let recipe = format!("{SUITE} {PACKAGES} {LEFT_OUT:?} {CUSTOMIZE}");
    let mut version = hex::encode(Sha256::digest(recipe));
    version.truncate(12);
    let tools = root.join("target/tools");
    let archive = tools.join(format!("machine-{version}.tar"));
    if archive.exists() {
        return Ok((archive, version));
    }
    for needed in ["perl", "python3", "tar"] {
        if found(needed).is_none() {
            bail!("there is no {needed}, which mmdebstrap needs");
        }
    }
    let folder = debian::unpack(root, "mmdebstrap", &["mmdebstrap"], &[])?;
    let scratch = tempfile::Builder::new().prefix("tpi-machine-").tempdir()?;
    let hook = scratch.path().join("customize");
    std::fs::write(&hook, CUSTOMIZE)?;
    // The suffix tells mmdebstrap the format.
    let unfinished = tools.join("machine-unfinished.tar");
    let mut command = Command::new("perl");
    command.arg(debian::binary(&folder, "mmdebstrap")?);
    debian::environment(&folder, &mut command);
    // Its libraries are our own system's.
    command.env_remove("LD_LIBRARY_PATH").env("TMPDIR", scratch.path());
    command
        .args(["--quiet", "--variant=minbase", "--mode=root", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg("--aptopt=APT::Sandbox::User \"root\"")
        .arg(format!("--customize-hook=sh {} \"$1\"", hook.display()))
        .arg(SUITE)
        .arg(&unfinished);
    quietly(&mut command).context("making the image of a machine")?;
    std::fs::rename(&unfinished, &archive)?;
    Ok((archive, version))
}
