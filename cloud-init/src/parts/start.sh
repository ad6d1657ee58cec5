# Whatever fails in here, the machine goes off.
trap 'systemctl --no-block start tpi-power-off.service || systemctl --no-block poweroff' EXIT
set -e
systemctl start tpi-power-off.timer
systemctl is-active --quiet tpi-power-off.timer
umask 022
mkdir -p /etc/tpi /usr/local/bin /usr/local/lib/tpi
rm -f /etc/tpi/machine.json
(umask 077; cat > /etc/tpi/machine.json) <<'TPI'
@CONFIG@
TPI
cat > /usr/local/lib/tpi/install <<'TPI'
@INSTALL@
TPI
cat > /usr/local/lib/tpi/fetch.py <<'TPI'
@FETCH@
TPI
cat > /etc/systemd/system/tpi-install.service <<'TPI'
[Unit]
Description=Fetch the tpi agent
Wants=network-online.target
After=network-online.target
OnFailure=tpi-power-off.service

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=900
ExecStart=/bin/sh /usr/local/lib/tpi/install
StandardOutput=journal+console
StandardError=journal+console
TPI
cat > /etc/systemd/system/tpi-agent.service <<'TPI'
[Unit]
Description=The tpi agent
Requires=tpi-install.service
Wants=network-online.target
After=tpi-install.service network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=5
OnFailure=tpi-power-off.service

[Service]
ExecStart=/usr/local/bin/tpi-agent run --config /etc/tpi/machine.json
@SUCCESS@Restart=on-failure
RestartSec=5
# Another machine continues the slot: this one has nothing left to do.
RestartPreventExitStatus=75
KillMode=mixed
TimeoutStopSec=110
OOMPolicy=continue
TasksMax=infinity
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
TPI
systemctl daemon-reload
systemctl enable tpi-agent.service
systemctl --no-block start tpi-agent.service
trap - EXIT
