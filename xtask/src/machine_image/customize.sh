#!/bin/sh
# Makes the packages unpacked in $1 the image of a machine that boots in a container.
set -eu
root=$1

# Parts of a machine that a container has not: devices, consoles, a network to configure.
for unit in \
  systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
  systemd-resolved.service systemd-timesyncd.service systemd-logind.service \
  systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service \
  getty.target console-getty.service dev-hugepages.mount sys-fs-fuse-connections.mount \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# cloud-init's first stage asks for an address by DHCP, which nobody here gives: the second finds its data alone.
ln -sf /dev/null "$root/etc/systemd/system/cloud-init-local.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# What a unit prints on the console is what the engine keeps as the container's log.
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system.conf.d"
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n' > "$root/etc/systemd/journald.conf.d/machine.conf"
# A machine that is asked to end has as long as the engine gives it.
printf '[Manager]\nDefaultTimeoutStopSec=20s\n' > "$root/etc/systemd/system.conf.d/machine.conf"

# There is no firmware to tell which cloud this is, so a file tells it: on AWS this name begins so.
ec2="$root/usr/lib/python3/dist-packages/cloudinit/sources/DataSourceEc2.py"
grep -q '"/sys/hypervisor/uuid"' "$ec2"
sed -i 's,"/sys/hypervisor/uuid","/etc/cloud/hypervisor-uuid",' "$ec2"
echo ec2e1916-9099-7caf-fd21-012345abcdef > "$root/etc/cloud/hypervisor-uuid"
chroot "$root" python3 -m compileall -q /usr/lib/python3/dist-packages/cloudinit/sources > /dev/null
mkdir -p "$root/etc/cloud/cloud.cfg.d"
cat > "$root/etc/cloud/cloud.cfg.d/99-machine.cfg" <<'CLOUD'
datasource_list: [Ec2]
datasource:
  Ec2:
    metadata_urls: [http://169.254.169.254]
    timeout: 5
    max_wait: 60
# The engine gives the address.
network:
  config: disabled
# Packages, users, locales and disks take time and have no part in this.
cloud_init_modules: [bootcmd, write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user, final-message]
CLOUD
printf 'policy: enabled\ndatasource: Ec2\n' > "$root/etc/cloud/ds-identify.cfg"

# Every machine gets its own when it boots.
: > "$root/etc/machine-id"
rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root/var/log/apt" "$root/var/log/dpkg.log" \
  "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root/usr/share/info"
mkdir -p "$root/var/lib/apt/lists" "$root/var/cache/apt/archives/partial"
