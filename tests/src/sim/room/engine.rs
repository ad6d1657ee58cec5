//! The Docker engine, by its command line.

use std::{
    net::Ipv4Addr,
    process::{Command as Blocking, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// On all that is made here: the process that made it.
const LABEL: &str = "tpi.room";
static ROOMS: AtomicU32 = AtomicU32::new(0);

/// An engine.
#[derive(Debug, Clone)]
pub struct Engine {
    host: String,
    image: String,
}

impl Engine {
    /// The one at that address (`unix:///…`), and the image in it that machines are made from.
    #[must_use]
    pub fn at(host: &str, image: &str) -> Self {
        Self { host: host.to_owned(), image: image.to_owned() }
    }

    /// What machines are made from.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// Runs `docker` to its end and gives what it printed.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("docker")
            .env_remove("DOCKER_CONTEXT")
            .args(["--host", &self.host])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("starting docker")?;
        ensure!(
            output.status.success(),
            "docker {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if arguments.first() == Some(&"logs") {
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    /// A name that nobody else gives a room.
    pub(super) fn new_name(&self) -> String {
        let number = ROOMS.fetch_add(1, Ordering::Relaxed);
        format!("tpi-room-{}-{number}", std::process::id())
    }

    /// Makes a network and gives this computer's address in it.
    pub(super) async fn make_network(&self, name: &str) -> Result<Ipv4Addr> {
        let label = format!("{LABEL}={}", owner(std::process::id()).context("this process is not in /proc")?);
        let _id = self.run(&["network", "create", "--driver", "bridge", "--label", &label, name]).await?;
        let format = "{{(index .IPAM.Config 0).Gateway}}";
        let gateway = self.run(&["network", "inspect", "--format", format, name]).await?;
        gateway.trim().parse().with_context(|| format!("the gateway of {name}: {gateway:?}"))
    }

    /// What a container is marked with.
    pub(super) fn label(&self) -> String {
        format!("{LABEL}={}", owner(std::process::id()).unwrap_or_default())
    }

    /// Removes what processes have left that are gone.
    pub(super) async fn remove_leftovers(&self) -> Result<()> {
        let format = format!("{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}");
        let filter = format!("label={LABEL}");
        for (list, remove) in
            [(&["ps", "--all"][..], &["rm", "--force"][..]), (&["network", "ls"], &["network", "rm"])]
        {
            let list = [list, &["--filter", &filter, "--format", &format]].concat();
            for line in self.run(&list).await?.lines() {
                let Some((id, label)) = line.split_once(' ') else { continue };
                let pid = label.split('-').next().and_then(|pid| pid.parse().ok());
                if pid.and_then(owner).as_deref() != Some(label) {
                    // Somebody else may be removing it at this moment.
                    drop(self.run(&[remove, &[id]].concat()).await);
                }
            }
        }
        Ok(())
    }

    /// Removes a room's machines and its network, and waits for it.
    pub(super) fn remove_all_of(&self, network: &str) {
        let docker = |arguments: &[&str]| {
            Blocking::new("docker")
                .env_remove("DOCKER_CONTEXT")
                .args(["--host", &self.host])
                .args(arguments)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .output()
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default()
        };
        let filter = format!("name=^{network}-");
        // A container that the engine was about to make when it was last told something appears late.
        for _ in 0..50 {
            let containers = docker(&["ps", "--all", "--quiet", "--filter", &filter]);
            let containers: Vec<&str> = containers.lines().collect();
            if !containers.is_empty() {
                drop(docker(&[&["rm", "--force", "--volumes"][..], &containers].concat()));
            }
            drop(docker(&["network", "rm", network]));
            if docker(&["network", "ls", "--quiet", "--filter", &format!("name=^{network}$")]).is_empty() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

/// A process that is there, by a name that no other process ever has; `None` where it is not.
fn owner(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    // Field 22 of proc(5), of which two are cut off.
    rest.split(' ').nth(19).map(|start| format!("{pid}-{start}"))
}
