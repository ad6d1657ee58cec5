# First of all, on every boot, before any network: the timer that ends this machine whatever happens to the rest.
cat > /etc/systemd/system/tpi-power-off.service <<'TPI'
[Unit]
Description=Power off: the time of the tpi task is over, or its agent cannot run
DefaultDependencies=no

[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=-/bin/systemctl --no-block poweroff
ExecStart=/bin/sleep 180
ExecStart=-/bin/systemctl --force poweroff
ExecStart=/bin/sleep 60
ExecStart=-/bin/systemctl --force --force poweroff
TPI
cat > /etc/systemd/system/tpi-power-off.timer <<'TPI'
[Unit]
Description=The end of the tpi task
DefaultDependencies=no

[Timer]
OnCalendar=@AT@
OnBootSec=@AFTER_BOOT@s
AccuracySec=1s
Persistent=true

[Install]
WantedBy=timers.target
TPI
systemctl daemon-reload
systemctl enable tpi-power-off.timer
systemctl --no-block start tpi-power-off.timer
# A timer that is new does not make up for a time that was over before.
if [ "$(date -u +%s)" -ge @AT_SECONDS@ ]; then
  systemctl --no-block start tpi-power-off.service
fi
