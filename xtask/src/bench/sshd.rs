//! `ssh` to an sshd of our own on the loopback interface, from Debian packages that are only unpacked: the
//! peer for whatever travels from a script to a terminal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::debian;
use crate::process::{self, Server, quietly};

pub(super) struct Sshd {
    folder: PathBuf,
    place: TempDir,
    port: u16,
    user: String,
    _server: Server,
}

const LIBRARIES: &[&str] = &[
    "libwrap0",
    "libgssapi-krb5-2",
    "libkrb5-3",
    "libk5crypto3",
    "libkrb5support0",
    "libcom-err2",
    "libkeyutils1",
    "libwtmpdb0",
];

pub(super) fn start(root: &Path) -> Result<Sshd> {
    let folder = debian::unpack(root, "openssh", &["openssh-server", "openssh-client"], LIBRARIES)?;
    let place = tempfile::Builder::new().prefix("tpi-sshd-").tempdir()?;
    let at = |name: &str| place.path().join(name);
    for key in ["host", "user"] {
        let mut command = Command::new(debian::binary(&folder, "ssh-keygen")?);
        debian::environment(&folder, &mut command);
        quietly(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key)))?;
    }
    fs::copy(at("user.pub"), at("authorized"))?;
    let port = process::free_port()?;
    fs::write(
        at("config"),
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n",
            at("host").display(),
            at("authorized").display()
        ),
    )?;
    let user = quietly(Command::new("id").arg("-un"))?.trim().to_owned();
    let sshd = debian::binary(&folder, "sshd")?;
    let mut command = if user == "root" { as_root(&place, &sshd)? } else { Command::new(&sshd) };
    debian::environment(&folder, &mut command);
    let log = fs::File::create(root.join("target/tools/sshd.log"))?;
    command.args(["-D", "-e", "-f"]).arg(at("config")).stdout(Stdio::null()).stderr(Stdio::from(log));
    let mut server = Server::start("sshd", &mut command)?;
    server.wait_until(Duration::from_secs(30), || process::answers(port))?;
    Ok(Sshd { folder, place, port, user, _server: server })
}

/// As root sshd wants a user and a folder of its own, which only an installed one has: it gets them in a mount
/// namespace, where nobody else sees them.
fn as_root(place: &TempDir, sshd: &Path) -> Result<Command> {
    let users = place.path().join("passwd");
    let mut text = fs::read_to_string("/etc/passwd")?;
    if !text.contains("\nsshd:") {
        text.push_str("sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n");
    }
    fs::write(&users, text)?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/passwd && mount -t tmpfs tmpfs /run && mkdir /run/sshd && shift && exec \"$@\"")
        .arg("sh")
        .arg(users)
        .arg(sshd);
    Ok(command)
}

impl Sshd {
    /// `ssh … command`, where the command line goes through the remote shell.
    pub(super) fn ssh(&self, command: &str) -> Result<Command> {
        let mut ssh = Command::new(debian::binary(&self.folder, "ssh")?);
        debian::environment(&self.folder, &mut ssh);
        ssh.args(["-F", "none", "-q", "-T", "-p", &self.port.to_string(), "-i"])
            .arg(self.place.path().join("user"))
            .args(["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"])
            .arg(format!("{}@127.0.0.1", self.user))
            .arg(command);
        Ok(ssh)
    }
}
