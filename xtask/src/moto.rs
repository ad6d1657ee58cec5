//! An emulator of AWS on the loopback interface: moto's server, in a virtual environment below `target/tools`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::debian;
use crate::process::{self, Server, quietly};

const VERSION: &str = "5.2.5";

pub(crate) struct Moto {
    /// Stopped with this value.
    _server: Server,
    /// `http://127.0.0.1:PORT`
    pub(crate) endpoint: String,
}

pub(crate) fn start(root: &Path) -> Result<Moto> {
    let place = install(root)?;
    let port = process::free_port()?;
    let log = std::fs::File::create(root.join("target/tools/moto.log"))?;
    let mut server = Server::start(
        "moto",
        Command::new(place.join("bin/python"))
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            // The images it brings are of 2017, and it believes in any name of an image or a type.
            .env("MOTO_AMIS_PATH", root.join("xtask/src/moto_images.json"))
            .env("MOTO_ENABLE_AMI_VALIDATION", "true")
            .env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "true")
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log)),
    )?;
    server.wait_until(Duration::from_secs(90), || process::answers(port))?;
    Ok(Moto { _server: server, endpoint: format!("http://127.0.0.1:{port}") })
}

/// The virtual environment that it is in.
pub(crate) fn install(root: &Path) -> Result<PathBuf> {
    let place = root.join(format!("target/tools/moto-{VERSION}"));
    let done = place.join(".installed");
    if done.exists() {
        return Ok(place);
    }
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    let python = process::found("python3").context("there is no python3")?;
    let package = format!("moto[server]=={VERSION}");
    let pip = ["install", "--quiet", "--disable-pip-version-check", &package];
    if quietly(Command::new(&python).args(["-m", "venv"]).arg(&place)).is_ok() {
        quietly(Command::new(place.join("bin/python")).args(["-m", "pip"]).args(pip))?;
    } else {
        // Debian keeps pip apart from Python: bring it as the wheel in its package.
        quietly(Command::new(&python).args(["-m", "venv", "--clear", "--without-pip"]).arg(&place))?;
        let wheels = debian::unpack(root, "pip", &["python3-pip-whl"], &[])?.join("usr/share/python-wheels");
        let wheel = std::fs::read_dir(&wheels)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pip-")))
            .with_context(|| format!("no pip in {}", wheels.display()))?;
        quietly(Command::new(place.join("bin/python")).arg(wheel.join("pip")).args(pip))?;
    }
    std::fs::write(done, VERSION)?;
    Ok(place)
}
