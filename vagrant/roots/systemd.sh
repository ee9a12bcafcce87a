#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs once in the new root file system of systemd guests. Units, sandboxes and terminals stay as Debian ships them; the
# services are only made to answer other hosts.
set -eu

echo root:rig | chpasswd
useradd --system rig

for cluster in /etc/postgresql/*/main; do
    printf "listen_addresses = '*'\njit = off\n" >"$cluster/conf.d/rig.conf"
    echo "host all all samenet trust" >>"$cluster/pg_hba.conf"
done
echo "keepalive_requests 1000000;" >/etc/nginx/conf.d/rig.conf
printf 'bind * -::*\nprotected-mode no\nsave ""\n' >>/etc/redis/redis.conf

# It counts in memory and on disk: what is lost between the two shows.
cat >/etc/systemd/system/rig-counter.service <<UNIT
[Unit]
Description=Counter of the two-host rig

[Service]
ExecStart=/bin/sh /usr/local/lib/counter.sh /var/lib/rig-counter
User=rig
StateDirectory=rig-counter

[Install]
WantedBy=multi-user.target
UNIT
systemctl enable rig-counter.service
