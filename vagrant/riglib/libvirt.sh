#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A libvirt of its own, as PID 1 of new mount, network and PID namespaces: see private_libvirt.py, which starts it.
#
#   libvirt.sh FOLDER     disk images go to FOLDER, logs to FOLDER/log
#
# All that libvirt writes to elsewhere is in memory, and gone with the namespaces. Of the machine's own libvirt, D-Bus and
# network nothing is to be seen here.
set -eu

folder=$1
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/folder "$folder/images" "$folder/log"
mount --bind "$folder" /run/folder
for directory in /etc /var/lib /var/cache /var/log; do
    layers=/run/layers$directory
    mkdir -p "$layers/upper" "$layers/work"
    mount -t overlay -o "lowerdir=$directory,upperdir=$layers/upper,workdir=$layers/work" overlay "$directory"
done
mkdir -p "$folder" /var/lib/libvirt/images /var/log/libvirt /etc/libvirt
mount --bind /run/folder "$folder" # it may lie below one of these
mount --bind "$folder/images" /var/lib/libvirt/images
mount --bind "$folder/log" /var/log/libvirt

# libvirtd does not start without the user that a package of its system service makes.
for file in passwd:libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin group:libvirt-qemu:x:64055: group:kvm:x:64056:; do
    line=${file#*:}
    grep -q "^${line%%:*}:" "/etc/${file%%:*}" || echo "$line" >>"/etc/${file%%:*}"
done

# Everything here runs as root in namespaces that end with us: nothing needs more confinement, or other owners.
cat >/etc/libvirt/qemu.conf <<CONFIG
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
CONFIG
cat >/etc/libvirt/libvirtd.conf <<CONFIG
auth_unix_rw = "none"
log_outputs = "3:stderr"
CONFIG

ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
virtlogd >"$folder/log/virtlogd" 2>&1 &
libvirtd >"$folder/log/libvirtd" 2>&1 &
# As PID 1 the shell also reaps what others leave; if libvirtd did not get its children reaped, it would wait for minutes.
wait $!
