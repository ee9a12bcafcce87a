# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a configuration stays inside of its container; everything else takes the receiving host's consent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.config import config_reader, consent

# As lxc-create and the rig make them; none of it is anything that the other host has to be asked about.
ORDINARY = """
# Template used to create this container: /usr/share/lxc/templates/lxc-download
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/common.conf.d/
lxc.include = /usr/share/lxc/a-folder-that-no-host-has/
lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp
lxc.seccomp.profile = /etc/lxc/own.seccomp
lxc.seccomp.allow_nesting = 1
lxc.arch = linux64
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.rootfs.path = btrfs:/pool/web/rootfs
lxc.uts.name = web
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.hwaddr = 00:16:3e:01:02:03
lxc.net.0.veth.pair = veth-web.0
lxc.net.0.veth.mode = bridge
lxc.net.0.mtu = 1280
lxc.net.0.ipv4.address = 10.0.3.5/24
lxc.net.1.type = empty
lxc.apparmor.profile = generated
lxc.apparmor.allow_nesting = 1
lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed
lxc.mount.entry = tmpfs tmp tmpfs rw,create=dir 0 0
lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file
lxc.mount.entry = shm dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=64m,mode=1777,optional 0 0
lxc.mount.entry = proc proc proc defaults
lxc.autodev = 1
lxc.mount.entry = shm dev/shm tmpfs defaults,create=dir 0 0
lxc.mount.entry = mqueue dev/mqueue mqueue defaults,optional,create=dir 0 0
lxc.mount.entry = /dev/fuse fuse none bind,optional
lxc.console.path = none
lxc.tty.max = 0
lxc.signal.halt = SIGTERM
lxc.init.cmd = /bin/sh /counter.sh /
lxc.cgroup2.memory.max = 400M
lxc.cgroup2.cgroup.max.descendants = 64
lxc.cgroup2.cpu.weight = 100
lxc.cgroup2.io.weight = default 50
lxc.cgroup2.memory.low = 0
lxc.cgroup2.cpuset.cpus = 0-1
lxc.cgroup2.hugetlb.2MB.max = 0
lxc.cgroup2.io.max = 8:0 rbps=1048576
lxc.cgroup2.devices.deny = a
lxc.cgroup2.devices.allow = c 1:3 rwm
lxc.cgroup2.devices.allow = c 136:* rwm
lxc.cgroup2.devices.allow = c *:* m
lxc.cap.drop = sys_module mac_admin
lxc.environment = container=lxc
lxc.environment = LC_ALL=C.UTF-8
lxc.environment = TERM=xterm-256color
lxc.environment = TZ=Europe/Berlin
lxc.environment = TZ=CET-1CEST,M3.5.0,M10.5.0/3
lxc.environment = TZ=
lxc.idmap = u 65536 4294901760 65536
lxc.start.auto = 1
lxc.start.delay = 60
lxc.start.order = -10
lxc.group = onboot
lxc.sysctl.net.ipv4.ip_forward = 1
lxc.prlimit.nofile = 1024
lxc.prlimit.memlock = unlimited
lxc.prlimit.rtprio = 0
lxc.prlimit.nice = 0:0
lxc.hook.start =
"""

REACHING = [
    "lxc.hook.pre-start = /bin/sh -c id", "lxc.hook.start-host=/x", "lxc.hook.post-stop\t=\t/x", " lxc.hook.mount = /x",
    "lxc.hook.clone = /x", "lxc.hook.destroy = /x", "lxc.net.0.script.up = /x", "lxc.net.0.script.down = /x",
    "lxc.mount.entry = /srv srv none bind,create=dir", "lxc.mount.entry = /srv srv none rbind",
    "lxc.mount.entry = /dev/sda1 mnt ext4 rw", "lxc.mount.entry = /dev/../etc/shadow x none bind",
    "lxc.mount.entry = /srv srv", "lxc.mount.entry = srv srv none bind", "lxc.mount.entry = tmpfs tmp tmpfs bind",
    "lxc.mount.entry = overlay x overlay lowerdir=/etc", "lxc.mount.fstab = /etc/fstab", "lxc.mount = /etc/fstab",
    *(f"lxc.mount.entry = /etc mnt tmpfs {options}" for options in (
        "bindx", "rbind0", "ro,bind1", "bind=1", "relative",
        "movex", "move", "remount", "remount0", "idmap=1", "shared",
        "rshared")),
    f"lxc.mount.entry = /etc mnt tmpfs {'ro,' * 400}ro",
    "lxc.mount.entry = proc esc/nologin proc create=file,optional", "lxc.mount.entry = tmpfs esc/x tmpfs create=dir",
    "lxc.mount.entry = tmpfs dev/x/self/root/etc/x tmpfs create=dir", "lxc.autodev = 0", "lxc.autodev =",
    'lxc.autodev = ""',
    "lxc.mount.entry = tmpfs x tmpfs create=file",
    "lxc.mount.entry = /dev/null esc/null none bind,create=file", "lxc.mount.entry = /dev/null mnt ext4 rw",
    "lxc.mount.entry = /dev/null null none bind,relative",
    "lxc.mount.auto = shmounts:/run/x", "lxc.include = /srv/own.conf", "lxc.include = relative.conf",
    "lxc.include = /usr/share/lxc/../../../pool/web/rootfs/x.conf", "lxc.include = /usr/share/lxc/not-here.conf",
    "lxc.seccomp.profile = /root/x", "lxc.seccomp.profile = /usr/share/lxc/../../../root/x",
    "lxc.seccomp.profile = common.seccomp",
    "lxc.log.file = /etc/cron.d/x", "lxc.console.logfile = /etc/cron.d/x", "lxc.console.path = /dev/tty1",
    "lxc.net.0.type = phys", "lxc.net.0.type = none", "lxc.net.0.type = macvlan", "lxc.net.0.link.x = y",
    "lxc.net.0.veth.mode = router", "lxc.net.0.veth.ipv4.route = 192.0.2.1/32", "lxc.net.0.veth.vlan.id = 7",
    *(f"lxc.net.0.mtu = {size}" for size in ("1279", "68", "1", "0", "01500", "0x5dc", "-1", "150\u0660", "150000")),
    "lxc.net.0.l2proxy = 1", "lxc.tty.dir = ../../etc", "lxc.mount.entry = tmpfs ../../etc tmpfs create=dir",
    "lxc.namespace.share.pid = 1", "lxc.namespace.keep = user net", "lxc.namespace.clone = net",
    *(f"lxc.cgroup2.cgroup.{file} = 1" for file in ("procs", "threads", "kill", "freeze", "type", "subtree_control")),
    "lxc.cgroup2.tasks = 1", "lxc.cgroup.release_agent = /x", "lxc.keyring.session = 0",
    "lxc.keyring.session = 1",
    "lxc.cgroup.dir = ../x", "lxc.cgroup.dir.monitor = x", "lxc.cgroup.relative = 1",
    "lxc.cgroup2.devices.allow = a", "lxc.cgroup2.devices.allow = b 8:0 rw", "lxc.cgroup.devices.allow = c 4:64 rw",
    "lxc.cgroup2.devices.allow = c *:* rwm", "lxc.sysctl.kernel.core_pattern = |/x",
    "lxc.environment = LD_PRELOAD=/pool/web/rootfs/x.so", "lxc.environment = PATH=/pool/web/rootfs",
    "lxc.environment.hooks = LD_PRELOAD=/x", "lxc.idmap = u 0 0 65536", "lxc.idmap = b 0 1000 1", "lxc.idmap = u 0",
    "lxc.seccomp.notify.proxy = unix:/run/x", "lxc.rootfs.options = bind", "lxc.rootfs.mount = /etc",
    "lxc.rootfs.path = overlay:/etc:/x", "lxc.rootfs.path = nbd:/etc/shadow", "lxc.rootfs.path = loop:/x",
    "lxc.hook.pre-start-of-a-later-lxc = /x", "lxc.newer.key = 1", "no key", 'lxc.hook.start = "/x"',
    "lxc.cgroup2.memory.min = 1G", "lxc.cgroup2.memory.low = 1G", "lxc.cgroup2.cpuset.cpus.partition = isolated",
    "lxc.cgroup2.cpu.weight = 10000", "lxc.cgroup2.cpu.weight = 0x65",
    "lxc.cgroup2.io.weight = default 101", "lxc.cgroup2.io.weight = 8:0 101", "lxc.cgroup2.cpu.uclamp.min = 50.00",
    "lxc.cgroup2.cpuset.cpus.exclusive = 0-62", "lxc.cgroup2.memory.reclaim = 1G", "lxc.cgroup2.io.cost.qos = 8:0",
    *(f"lxc.net.0.veth.pair = {name}" for name in (
        "mig-0badc0de", "mg0badc0de-0", "wg0", "tun0", "br0", "br-lan", "virbr1", "docker0", "lo", "eth0", "enp3s0",
        "eth%d", "veth%d", "fwbr100i0", "usb0", "ib0", "web", "xveth0", "veth0 x", "veth/0", "veth:0", "veth\u0660",
        "veth012345678901")),
    *(f"lxc.prlimit.{limit}" for limit in (
        "rtprio = 99", "rtprio = 0:1", "rtprio = unlimited", "nice = 40", "nice = 0:21", "newer = 1")),
    *(f"lxc.start.delay = {seconds}" for seconds in ("61", "300", "2147483647", "0x7f", "-1", "soon", "6\u0660")),
    *(f"lxc.start.order = {order}" for order in ("2147483647", "-2147483648", "1000000", "0x10", "first")),
    "# BEGIN migrator fence# END migrator fence lxc.hook.start = /x", "# END migrator fence",
    *(f"lxc.net.0.{key} = {name}" for key in ("link", "name") for name in (
        "/pool/.migrator/x", "..", "../../../../srv/x", "lxcbr0/x")),
    *(f"lxc.idmap = u {numbers}" for numbers in (
        "0 0100000 65536", "0 0x10000 65536", "0 4294967296 65536", "0 4294901761 65536",
        "0 18446744073709551616 65536", "0 100000 4294967296", "0 100000 0200000", "01 100000 65536",
        "4294967296 100000 65536", "0 +100000 65536", "0 10000\u0660 65536", "0 100000 -1")),
    "lxc.idmap = x 0 100000 65536", "lxc.idmap = u 0 100000",
    *(f"lxc.environment = {variable}" for variable in (
        "HOME=/var/lib/lxc/web/rootfs/root", "USER=root", "https_proxy=http://203.0.113.9:1", "TZ=/srv/x", "TZ=:/srv/x",
        "TZ=../../../srv/x", "TZ=Europe/../../x", "LANG", "PATH=/x", "CONTAINER_HOME=/x", "LC_ALL=/pool/x/rootfs/l",
        "LANG=/srv/x", "LC_CTYPE=../x", "TERM=/srv/x")),
    "lxc.uts.name = web\x1b", "\x0blxc.hook.start = /x", "# a\rlxc.hook.start = /x", "# a\0lxc.hook.start = /x",
    "# a\x85lxc.hook.start = /x", "lxc.uts.name = a\x0blxc.hook.start = /x", "lxc.apparmor.raw = x",
]


def here(path: str) -> bool:
    return path.startswith("/usr/share/lxc/config/")


def test_an_ordinary_container_reaches_out_nowhere() -> None:
    assert consent.reaching(ORDINARY, here) == []


@pytest.mark.parametrize("line", REACHING)
def test_what_reaches_out(line: str) -> None:
    assert consent.reaching(f"lxc.arch = linux64\n{line}\nlxc.tty.max = 0\n", here)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(st.characters(codec="utf-8"), max_size=20))
def test_what_is_not_known_reaches_out(value: str, before: str) -> None:
    """However it is written, a hook among other lines is found."""
    text = f"{before}\nlxc.hook.mount = x{value}\n"
    assert any("lxc.hook.mount" in line for line in consent.reaching(text, here))


COMMON = [("lxc.cgroup2.devices.deny", "a"), ("lxc.cgroup2.devices.allow", "c *:* m"),
          ("lxc.cgroup2.devices.allow", "c 1:3 rwm")]


@pytest.mark.parametrize(("rules", "added"), [
    (COMMON, False), ([*COMMON, ("lxc.cgroup2.devices.deny", "b 8:0 rwm")], False),
    ([("lxc.cgroup2.devices.allow", "a"), *COMMON], False),
    ([], True),
    ([*COMMON, ("lxc.cgroup2.devices.deny", ""), ("lxc.cgroup2.devices.allow", "")], True),  # LXC's userns.conf
    ([*COMMON, ("lxc.cgroup2", "")], True), ([*COMMON, ("lxc.cgroup2.devices.allow", "a")], True),
    (COMMON[:1], True),  # LXC attaches no program for that
    (COMMON[1:], True), ([("lxc.cgroup2.devices.deny", "b 8:0 rwm")], True),
])
def test_a_container_opens_no_device_of_the_host(rules: list[tuple[str, str]], added: bool) -> None:
    lines = consent.confining(rules)
    assert bool(lines) is added
    assert consent.confining([*rules, *config_reader.settings("\n".join(lines))]) == []
    assert consent.reaching("\n".join(lines), here) == [], "it can be moved on"


def test_what_may_be_asked() -> None:
    for path in ("/usr/share/lxc/config/common.seccomp", "/dev/null", "/etc/lxc/default.conf", "/var/lib/lxcfs/proc"):
        assert consent.may_be_asked(path)
    for path in ("/etc/shadow", "/root/.ssh/id_rsa", "/dev/sda", "/etc/lxc/../shadow", "/proc/1/environ", "/home/x",
                 "/usr/share/lxc/" + "x" * 5000):
        assert not consent.may_be_asked(path)


def test_many_lines_are_not_all_shown() -> None:
    assert consent.shown(["a", "b"]) == "a; b"
    assert consent.shown([str(n) for n in range(9)]) == "0; 1; 2; 3; 4 and 4 more"
