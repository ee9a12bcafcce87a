# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers made as Debian's packages make them, with the configuration that these ship, not a line of ours in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.rig import Rig, wait_for

# /etc/lxc/default.conf of Debian's package lxc; the rig has another one.
DEFAULT = """\
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up

lxc.apparmor.profile = generated
lxc.apparmor.allow_nesting = 1
"""
# What an administrator adds to it for an unprivileged container, with root's ids of /etc/subuid.
UNPRIVILEGED = """\
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
"""
DHCP = """\
start 10.0.3.150
end 10.0.3.199
interface eth0
lease_file /run/udhcpd.leases
pidfile /run/udhcpd.pid
option subnet 255.255.255.0
"""
# A service, and login prompts where Debian's inittab has them.
INITTAB = """\
::respawn:/usr/bin/redis-server /etc/redis/rig.conf
tty1::respawn:/sbin/agetty --noclear tty1 linux
tty4::respawn:/sbin/agetty tty4 linux
console::respawn:/sbin/agetty --noclear --keep-baud console 115200,38400,9600 linux
"""
REDIS = """\
bind * -::*
protected-mode no
daemonize no
save ""
appendonly no
dir /var/lib/redis
"""
SHIFT = """
import os, sys
for folder, _, files in os.walk(sys.argv[1]):
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        found = os.lstat(path)
        os.lchown(path, found.st_uid + 100000, found.st_gid + 100000)
        if not os.path.islink(path):
            os.chmod(path, found.st_mode & 0o7777)
"""


@contextlib.contextmanager
def network_with_leases(rig: Rig) -> Iterator[None]:
    """As lxc-net has it; the busybox template's containers wait for a lease before they do anything else."""
    rig.put("client", "/run/udhcpd.conf", DHCP)
    rig.sh("client", ": >/run/udhcpd.leases; busybox udhcpd -S /run/udhcpd.conf")
    try:
        yield
    finally:
        rig.sh("client", "kill $(cat /run/udhcpd.pid)")


def busybox(rig: Rig, host: str, name: str, *, unprivileged: bool) -> None:
    """`lxc-create -t busybox` and its first start, until somebody could log in. Its owner has added a service."""
    rig.put(host, "/root/stock.conf", DEFAULT + (UNPRIVILEGED if unprivileged else ""))
    rig.exec(host, "lxc-create", "-n", name, "-t", "busybox", "-B", "btrfs", "-f", "/root/stock.conf")
    rig.sh(host, f"cd /pool/{name}/rootfs && cp /opt/rig/guests/talk.sh . && "
                 "echo '::respawn:/bin/nc -ll -p 7 -e /bin/sh /talk.sh answer' >>etc/inittab && "
                 f"lxc-start -n {name}")
    wait_for(lambda: logins(rig, host, name) == {"tty1", "console"} and address(rig, host, name), "it has booted")


def debian(rig: Rig, host: str, name: str, ip: str, *, unprivileged: bool) -> None:
    """Debian as mmdebstrap has made it, with Debian's own configuration; busybox is its init."""
    root = f"/pool/{name}/rootfs"
    config = [DEFAULT, "lxc.include = /usr/share/lxc/config/common.conf", UNPRIVILEGED if unprivileged else "",
              f"lxc.rootfs.path = btrfs:{root}", f"lxc.uts.name = {name}", f"lxc.net.0.ipv4.address = {ip}/24", ""]
    rig.sh(host, f"mkdir -m 755 /pool/{name} && btrfs -q subvolume create {root} && cp -a /opt/rig/debian/. {root}/ && "
                 f"cp /bin/busybox {root}/sbin/init")
    rig.put(host, f"{root}/etc/inittab", INITTAB)
    rig.put(host, f"{root}/etc/redis/rig.conf", REDIS)
    if unprivileged:
        rig.exec(host, "python3", "-c", SHIFT, root)
    rig.put(host, f"/pool/{name}/config", "\n".join(config))
    rig.exec(host, "lxc-start", "-n", name)
    wait_for(lambda: logins(rig, host, name) == {"tty1", "tty4", "console"}, "it has booted")


def logins(rig: Rig, host: str, name: str) -> set[str]:
    """Where a program in the container has its terminal: the names in /dev."""
    return set(rig.sh(host, f"""
        for pid in $(cat /sys/fs/cgroup/lxc.payload.{name}/cgroup.procs); do
            set -- $(sed 's/.*) //' /proc/$pid/stat)
            [ "$5" = 0 ] || for path in /proc/$pid/root/dev/console /proc/$pid/root/dev/tty[0-9]*; do
                [ $(($(stat -Lc '%Hr * 256 + %Lr' $path))) != "$5" ] || basename $path
            done
        done""", check=False).split())


def address(rig: Rig, host: str, name: str) -> str:
    return next(iter(rig.sh(host, f"lxc-info -n {name} -iH", check=False).split()), "")


def processes(rig: Rig, host: str, name: str) -> set[str]:
    """Those of the container: their ids in there, and their names."""
    return set(rig.sh(host, f"""
        for pid in $(cat /sys/fs/cgroup/lxc.payload.{name}/cgroup.procs); do
            echo "$(sed -n 's/^NSpid:.*\\s//p' /proc/$pid/status) $(cat /proc/$pid/comm)"
        done""").splitlines())


def mounts(rig: Rig, host: str, name: str) -> set[str]:
    """What is mounted in the container, and what may be done there."""
    return set(rig.sh(host, f"awk '{{print $5, $6}}' /proc/$(lxc-info -n {name} -pH)/mountinfo").splitlines())


def ownership(rig: Rig, host: str, name: str) -> set[str]:
    """Who owns what in the container's cgroup, and what he may do to it; what `lxc-attach` has made there aside."""
    return set(rig.sh(host, f"cd /sys/fs/cgroup/lxc.payload.{name} && find . -path ./.lxc -prune -o "
                            "-printf '%p %U %G %m\\n'").splitlines())


def veths(rig: Rig, host: str) -> list[str]:
    """The hosts' ends of containers' veths, and what we have made for a restore."""
    return [name for name in rig.sh(host, "ls /sys/class/net").split() if name.startswith(("veth", "mg"))]


# Sits at a container's console and types a line now and then until something is answered. (What is typed while
# lxc-console still starts is lost.)
_TYPE = """
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("lxc-console", ["lxc-console", "-n", sys.argv[1], "-t", "0"])
seen = b""
while sys.argv[3].encode() not in seen:
    if select.select([terminal], [], [], 0.5)[0]:
        seen += os.read(terminal, 4096)
    else:
        os.write(terminal, sys.argv[2].encode())
os.kill(pid, 15)
"""


def type_at_console(rig: Rig, host: str, name: str, line: str, answer: str) -> None:
    """`lxc-console -t 0`, `line`, and `answer` appears; the test fails when it does not."""
    rig.exec(host, "timeout", "-k", "1", "60", "python3", "-c", _TYPE, name, line, answer)
