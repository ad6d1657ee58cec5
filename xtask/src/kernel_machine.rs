//! A machine with a kernel of its own, for the slow test: QEMU, and Debian on a disk.
//!
//! Everything is below `target/tools/kernel-machine`, made once: `qemu` starts the emulator with the libraries that it
//! was unpacked with, `vmlinuz` and `initrd` are the distribution's, and `disk.img` has nothing of ours in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::quietly;
use crate::{debian, machine_image};

/// What the disk has beside the smallest system: all of it is in every image that a cloud offers.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,cloud-init,iproute2,ifupdown,isc-dhcp-client,netplan.io,\
                        ca-certificates,curl,python3,udev,dbus,procps";
const DISK: &str = "3G";

pub(crate) fn prepare(root: &Path) -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("it is made for x86_64 only");
    }
    let folder = root.join("target/tools/kernel-machine");
    let done = folder.join(".made");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == PACKAGES) {
        return Ok(folder);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    emulator(root, &folder)?;

    let tree = folder.join("tree");
    machine_image::debootstrap(root, PACKAGES, &[], &tree)?;
    for (name, prefix) in [("vmlinuz", "vmlinuz-"), ("initrd", "initrd.img-")] {
        let file = std::fs::read_dir(tree.join("boot"))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
            .with_context(|| format!("no {prefix}* in the kernel's package"))?;
        std::fs::copy(file, folder.join(name))?;
    }
    let disk = folder.join("disk.img");
    quietly(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&disk).arg(DISK))
        .context("making the disk")?;
    std::fs::remove_dir_all(&tree)?;
    std::fs::write(done, PACKAGES)?;
    Ok(folder)
}

/// A script that starts QEMU, wherever it and its libraries are.
fn emulator(root: &Path, folder: &Path) -> Result<()> {
    let unpacked = debian::unpack_with_dependencies(root, "qemu", &["qemu-system-x86"])?;
    let script = match debian::binary(&unpacked, "qemu-system-x86_64") {
        Ok(program) => {
            let share = unpacked.join("usr/share");
            let libraries = ["usr/lib", "lib"].map(|at| {
                unpacked.join(at).join(format!("{}-linux-gnu", std::env::consts::ARCH)).display().to_string()
            });
            format!(
                "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' -L '{}' -L '{}' \"$@\"\n",
                libraries.join(":"),
                program.display(),
                share.join("qemu").display(),
                share.join("seabios").display(),
            )
        }
        // It is installed already.
        Err(_) => "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n".to_owned(),
    };
    let file = folder.join("qemu");
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    quietly(Command::new(&file).arg("--version")).context("starting QEMU")?;
    Ok(())
}
