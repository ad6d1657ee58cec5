//! A Docker engine for the tests: the one that answers here, or one of our own from Debian packages.
//!
//! Our own needs root. It has a private socket and data folder, makes no bridge and touches no firewall rule,
//! and is gone with everything in it when the tests end.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::debian;
use crate::process::{self, Server, quietly};

/// A shell and the usual small programs, static, so that it is the only file of its image.
pub(crate) const IMAGE: &str = "tpi-test:busybox";

pub(crate) struct Engine {
    /// `unix:///…`
    pub(crate) host: String,
    client: PathBuf,
    /// The image is ours to remove from an engine that is not ours.
    made_image: bool,
    /// The folder goes after the server that uses it.
    own: Option<(Server, TempDir)>,
}

impl Engine {
    /// A `docker` command for this engine.
    pub(crate) fn client(&self) -> Command {
        client(&self.client, &self.host)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some((server, place)) = self.own.take() else {
            if self.made_image {
                drop(quietly(self.client().args(["image", "rm", IMAGE])));
            }
            return;
        };
        drop(server);
        // The engine leaves its own network namespace mounted.
        drop(quietly(Command::new("umount").arg(place.path().join("run/netns/default"))));
        drop(place);
    }
}

pub(crate) fn start(root: &Path) -> Result<Engine> {
    let mut engine = match theirs() {
        Some(engine) => engine,
        None => own(root)?,
    };
    if quietly(engine.client().args(["image", "inspect", IMAGE])).is_err() {
        import(root, &engine)?;
        engine.made_image = true;
    }
    Ok(engine)
}

/// What `docker` itself would use, when that answers.
fn theirs() -> Option<Engine> {
    let docker = process::found("docker")?;
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    quietly(client(&docker, &host).args(["info", "--format", "{{.ServerVersion}}"])).ok()?;
    Some(Engine { host, client: docker, made_image: false, own: None })
}

fn own(root: &Path) -> Result<Engine> {
    let user = quietly(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!("no Docker engine answers, and starting one needs root");
    }
    let packages = ["docker.io", "containerd", "runc", "iptables"];
    let folder = debian::unpack(root, "docker", &packages, &["docker-cli", "libdevmapper1.02.1", "tini"])?;
    // A path of a socket is short (108 bytes); a checkout's may not be.
    let place = tempfile::Builder::new().prefix("tpi-docker-").tempdir()?;
    let socket = place.path().join("s");
    let host = format!("unix://{}", socket.display());
    let log = std::fs::File::create(root.join("target/tools/dockerd.log"))?;
    let mut command = Command::new(debian::binary(&folder, "dockerd")?);
    debian::environment(&folder, &mut command);
    command
        .args(["--host", &host, "--bridge=none", "--iptables=false", "--ip6tables=false", "--log-level=warn"])
        .args(["--live-restore=false", "--shutdown-timeout=5"])
        .args(["--data-root".into(), place.path().join("data").into_os_string()])
        .args(["--exec-root".into(), place.path().join("run").into_os_string()])
        .args(["--pidfile".into(), place.path().join("pid").into_os_string()])
        .args(["--config-file".into(), place.path().join("daemon.json").into_os_string()])
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log));
    std::fs::write(place.path().join("daemon.json"), "{}")?;
    let mut server = Server::start("dockerd", &mut command)?;
    let docker = debian::binary(&folder, "docker").ok().or_else(|| process::found("docker"));
    let docker = docker.context("no docker command in the packages")?;
    server
        .wait_until(Duration::from_secs(90), || {
            socket.metadata().is_ok_and(|data| data.file_type().is_socket())
                && quietly(client(&docker, &host).arg("version")).is_ok()
        })
        .context("the log is target/tools/dockerd.log")?;
    Ok(Engine { host, client: docker, made_image: false, own: Some((server, place)) })
}

/// No registry is asked: the image is one static busybox with a name for each of its programs.
fn import(root: &Path, engine: &Engine) -> Result<()> {
    let folder = debian::unpack(root, "busybox", &["busybox-static"], &[])?;
    let busybox = debian::binary(&folder, "busybox")?;
    let tree = tempfile::tempdir()?;
    for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir(tree.path().join(name))?;
    }
    std::fs::copy(&busybox, tree.path().join("bin/busybox"))?;
    for name in quietly(Command::new(&busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", tree.path().join("bin").join(name))?;
    }
    std::fs::write(tree.path().join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let archive = tree.path().join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree.path()).arg("-cf").arg(&archive);
    quietly(tar.args(["bin", "etc", "tmp", "proc", "sys", "dev"]))?;
    quietly(
        engine
            .client()
            .args(["import", "--change", "ENV PATH=/bin", "--change", "CMD [\"/bin/sh\"]"])
            .arg(&archive)
            .arg(IMAGE),
    )
    .context("importing the test image")?;
    Ok(())
}

fn client(docker: &Path, host: &str) -> Command {
    let mut command = Command::new(docker);
    command.env_remove("DOCKER_CONTEXT").args(["--host", host]);
    command
}
