//! A machine with firmware, a kernel, a disk and a network card of its own, emulated by QEMU.
//!
//! Nothing in its image knows of the emulation: firmware says that this is AWS, the network card asks for its address
//! by DHCP, and cloud-init runs all that the distribution has it run. It is slow: minutes to the first line of a script
//! where the processor is emulated too.
//!
//! Differs from AWS: its network is QEMU's own, in which 169.254.169.254 is answered here; nothing reaches the machine
//! but the agent's port, at an address of this computer's loopback network.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use super::{
    Shared,
    machine::{Machine, Order},
};
use crate::sim::front::EndReason;

/// The card that the metadata service tells of.
const MAC: &str = "52:54:00:12:34:56";
/// Where agents on AWS listen.
const AGENT_PORT: u16 = 8474;
/// From being asked to power off to being cut off.
const SHUTDOWN: Duration = Duration::from_secs(120);
/// By this cloud-init and everybody else knows that a machine is one of AWS.
const UUID: &str = "ec2e1916-9099-7caf-fd21-012345abcdef";

/// Where the parts of a machine are.
#[derive(Debug, Clone)]
pub struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// In a folder: `qemu` (a program that starts QEMU for this processor), `vmlinuz`, `initrd` and `disk.img`, which
    /// is never written to.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where `TPI_TEST_KERNEL_MACHINE` says; `None` where it says nothing.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        std::env::var_os("TPI_TEST_KERNEL_MACHINE").filter(|path| !path.is_empty()).map(Self::at)
    }

    fn command(&self, address: Ipv4Addr, metadata: u16, console: &std::path::Path) -> Command {
        let mut command = Command::new(self.folder.join("qemu"));
        let file = |name: &str| self.folder.join(name).display().to_string();
        // A program for each connection, which this one has no other way to make.
        let relay = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{metadata}; cat <&3 & cat >&3; wait'");
        let relay = relay.replace(',', ",,");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-display", "none", "-monitor", "stdio", "-snapshot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-smbios", "type=0,vendor=Amazon EC2"])
            .args(["-smbios", &format!("type=1,manufacturer=Amazon EC2,uuid={UUID},serial={UUID}")])
            .args(["-kernel", &file("vmlinuz"), "-initrd", &file("initrd")])
            .args(["-append", "root=/dev/vda rw console=ttyS0 systemd.show_status=no"])
            .args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", file("disk.img"))])
            .args(["-device", &format!("virtio-net-pci,netdev=net,mac={MAC},romfile=")])
            .args(["-device", "virtio-rng-pci"])
            .arg("-netdev")
            .arg(format!(
                "user,id=net,net=169.254.169.0/24,host=169.254.169.2,dns=169.254.169.3,\
                 dhcpstart=169.254.169.15,hostfwd=tcp:{address}:{AGENT_PORT}-:{AGENT_PORT},\
                 guestfwd=tcp:169.254.169.254:80-cmd:{relay}"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// An address of the loopback network that is hardly anybody else's.
fn address_of(id: &str) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    (id, std::process::id()).hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_be_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

/// Boots it; why it has ended, when the account does not know yet.
pub(super) async fn run(machine: &Machine, shared: &Shared, parts: &Parts) -> Result<Option<EndReason>> {
    let address = address_of(&machine.instance.id);
    machine.placed(address, MAC);
    shared.changed();
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let console = tempfile::Builder::new().prefix("tpi-console-").tempfile()?.into_temp_path();
    let mut command = parts.command(address, port, &console);
    machine.has_console(console);
    let _served = machine.metadata.serve(listener);
    let mut qemu =
        command.spawn().with_context(|| format!("starting {}", parts.folder.join("qemu").display()))?;
    let mut monitor = qemu.stdin.take().context("its monitor")?;
    let mut orders = machine.orders();
    loop {
        let order = *orders.borrow_and_update();
        match order {
            None => {}
            Some(Order::PowerOff) => {
                // It may be gone at this moment.
                drop(monitor.write_all(b"system_powerdown\n").await);
                drop(monitor.flush().await);
                if tokio::time::timeout(SHUTDOWN, qemu.wait()).await.is_err() {
                    qemu.kill().await?;
                }
                return Ok(None);
            }
            Some(Order::CutOff(reason)) => {
                qemu.kill().await?;
                return Ok(Some(reason));
            }
        }
        tokio::select! {
            status = qemu.wait() => {
                let status = status?;
                let said = said(&mut qemu).await;
                anyhow::ensure!(status.success(), "QEMU ended with {status}: {said}");
                return Ok(Some(EndReason::PoweredOff));
            }
            // The sender is in `machine`, which is borrowed here.
            _ = orders.changed() => {}
        }
    }
}

async fn said(qemu: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = qemu.stderr.take() {
        drop(tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut text).await);
    }
    text.trim().to_owned()
}
