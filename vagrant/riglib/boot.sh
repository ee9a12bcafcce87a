#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Makes a rig host out of fresh namespaces: its own root, /dev, /proc, /sys, then init. Started by hosts.py inside all the new
# namespaces, in the host's own cgroup; the machine's mounts are still visible, and nothing that is mounted here leaves this namespace.
#
#   boot.sh NAME LOWER DIRECTORY [POOL-SIZE GUEST-ROOT [DISK]]
#
# With DISK, the path of a device, the pool is an empty disk of that name, to be set up by whoever reads the README.
set -eu
name=$1 lower=$2 directory=$3 pool_size=${4:-} guests=${5:-} disk=${6:-}
root=$directory/root

mount --make-rprivate /
mkdir -p "$directory/upper" "$directory/work" "$root"
mount -t overlay -o "lowerdir=$lower,upperdir=$directory/upper,workdir=$directory/work" overlay "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# Only the host's own cgroup2 subtree: the cgroup namespace makes it the root of what is seen here. Processes live in a leaf of it,
# named as systemd names it, because LXC takes that suffix off and puts its containers beside it.
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mkdir -p "$root/sys/fs/cgroup/init.scope"
echo 0 >"$root/sys/fs/cgroup/init.scope/cgroup.procs"
# LXC delegates what it finds to be delegated. A controller that the machine holds back here is no reason to stop.
controllers=$(sed 's/[a-z]/+&/; s/ / +/g' "$root/sys/fs/cgroup/cgroup.controllers")
[ -z "$controllers" ] || echo "$controllers" >"$root/sys/fs/cgroup/cgroup.subtree_control" || true
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/sshd" "$root/run/lock" "$root/run/old"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty kmsg fuse btrfs-control loop-control userfaultfd; do
    [ ! -e "/dev/$node" ] || cp -a "/dev/$node" "$root/dev/$node"
done
mkdir -p "$root/dev/net" "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
[ ! -e /dev/net/tun ] || cp -a /dev/net/tun "$root/dev/net/tun"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

if [ -n "$pool_size" ]; then
    truncate -s "$pool_size" "$directory/pool.img"
    mkdir -p "$root/opt/rig/debian"
    mount --bind -o ro "$guests" "$root/opt/rig/debian"
fi
if [ -n "$disk" ]; then
    # Once it is mounted, state.py's `losetup --detach` sets it to autoclear; before, it frees it.
    loop=$(losetup --find --show "$directory/pool.img")
    mkdir -p "$root${disk%/*}"
    mknod "$root$disk" b 7 "${loop#/dev/loop}"
elif [ -n "$pool_size" ]; then
    # mkfs of the root file system, whose btrfs-progs are newer than the machine's, or the only ones.
    mount --bind "$directory" "$root/mnt"
    chroot "$root" mkfs.btrfs -q /mnt/pool.img
    umount "$root/mnt"
    mkdir -p "$root/pool"
    # mount(8) sets the loop device to autoclear: it goes with this mount namespace.
    mount -t btrfs -o loop,noatime "$directory/pool.img" "$root/pool"
    cp -a "$(findmnt -n -o SOURCE "$root/pool")" "$root/dev/"
    mkdir -p "$root/var/log/lxc"
fi

hostname "$name"
echo "$name" >"$root/etc/hostname"
[ ! -e /proc/sys/net/ipv4/ping_group_range ] || echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range 2>/dev/null || true

cd "$root"
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
ip link set dev lo up
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f /etc/ssh/ssh_host_ed25519_key
[ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f /root/.ssh/id_ed25519
touch /run/rig-booted
init=/opt/rig/busybox # on hosts by the README, which may have none of their own
[ -x $init ] || init=/bin/busybox
exec $init init </dev/null >/dev/null 2>&1
