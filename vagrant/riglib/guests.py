# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes containers to move. Each kind can be asked whether its memory and disk are intact: see guests/probe.py."""

import hashlib
import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from riglib import guest_roots, state
from riglib.errors import RigError
from riglib.hosts import LXC_HOSTS
from riglib.install import HELPERS
from riglib.run import inside

POOL = "/pool"
DEBIAN = "/opt/rig/debian"
"""Where boot.sh shows the cached root file system of Debian guests to each LXC host."""
IDMAP_BASE = 100000
NAME_LENGTH = 64
LIMIT = 600
"""Seconds for what is done in a host. A guest of systemd boots in three, but in minutes in a virtual machine without
KVM that shares its processors."""
FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "user", "var")
APPLETS = ("sh", "su", "sleep", "cat", "ls", "ps", "id", "ip", "kill", "mv", "rm", "tail", "ping", "wc", "nc", "head",
           "base64", "md5sum")  # fmt: skip
ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/user:/bin/sh\n"
GROUPS = "root:x:0:\nuser:x:1000:\n"
REDIS_CONFIG = """bind * -::*
protected-mode no
daemonize no
save ""
appendonly no
dir /var/lib/redis
logfile /var/log/redis/redis.log
"""


@dataclass(frozen=True)
class Guest:
    """A container to be made."""

    host: str
    name: str
    kind: str
    address: str = ""
    size: int = 0
    dirty: float = 0.0
    extra: list[str] = field(default_factory=list)
    unprivileged: bool = False

    @property
    def root(self) -> str:
        """The root file system, a subvolume of its own."""
        return f"{POOL}/{self.name}/rootfs"

    def run(self, *command: str, text: str = "", file: Path | None = None, timeout: float = LIMIT) -> str:
        """Run a program on the guest's host."""
        return inside(self.host, command, text=text, file=file, timeout=timeout)

    def put(self, path: str, text: str) -> None:
        """Write a file in the guest's folder."""
        self.run("tee", f"{POOL}/{self.name}/{path}", text=text)


def tick(guest: Guest) -> list[str]:
    """Fill the root with busybox and a counter; return the configuration that this needs."""
    root = guest.root
    guest.run("mkdir", *(f"{root}/{name}" for name in FOLDERS))
    guest.run("cp", "/bin/busybox", f"{root}/bin/")
    guest.run("sh", "-c", 'cd "$0" && for name; do ln -s busybox "$name"; done', f"{root}/bin", *APPLETS)
    guest.run("cp", f"{HELPERS}/guests/counter.sh", f"{root}/")
    guest.put("rootfs/etc/passwd", ACCOUNTS)
    guest.put("rootfs/etc/group", GROUPS)
    return ["lxc.init.cmd = /bin/sh /counter.sh /"]


def userns(guest: Guest) -> list[str]:
    """Two counters in a user namespace, one as root and one not."""
    tick(guest)
    guest.run("chown", "1000:1000", f"{guest.root}/user")
    return ["lxc.init.cmd = /bin/sh /counter.sh / user"]


def talk(guest: Guest) -> list[str]:
    """Busybox with a counter, pages that it can verify, and a service that answers on port 7."""
    tick(guest)
    guest.run("cp", f"{HELPERS}/guests/talk.sh", f"{guest.root}/")
    return ["lxc.init.cmd = /bin/sh /talk.sh"]


def memory(guest: Guest) -> list[str]:
    """Debian with a process that holds pages that it can verify."""
    guest.run("cp", "-a", f"{DEBIAN}/.", f"{guest.root}/")
    guest.run("cp", f"{HELPERS}/guests/memory.py", f"{guest.root}/")
    return [f"lxc.init.cmd = /usr/bin/python3 /memory.py {guest.size} {guest.dirty:g}"]


def redis(guest: Guest) -> list[str]:
    """Debian with a Redis server as the container's init."""
    guest.run("cp", "-a", f"{DEBIAN}/.", f"{guest.root}/")
    guest.put("rootfs/etc/redis/rig.conf", REDIS_CONFIG)
    return ["lxc.init.cmd = /usr/bin/redis-server /etc/redis/rig.conf"]


def stock(guest: Guest) -> list[str]:
    """Debian as it is installed, and LXC's own configuration: terminals, seccomp, mounts."""
    guest.run("tar", "-x", "--numeric-owner", "-C", guest.root, file=guest_roots.ensure(guest.kind))
    guest.put("rootfs/etc/hostname", f"{guest.name}\n")
    names = ("common", "userns") if guest.unprivileged else ("common",)
    return [f"lxc.include = /usr/share/lxc/config/{name}.conf" for name in names]


def booted(guest: Guest) -> list[str]:
    """Debian with an init that boots it, such as systemd, and an sshd."""
    lines = stock(guest)
    keys = "".join(inside(host, ["cat", "/root/.ssh/id_ed25519.pub"]) for host in (*LXC_HOSTS, "client"))
    guest.run("mkdir", "-p", "-m", "700", f"{guest.root}/root/.ssh")
    guest.put("rootfs/root/.ssh/authorized_keys", keys)
    return lines


def openrc(guest: Guest) -> list[str]:
    """The same, whose init knows another signal to stop than LXC's own."""
    return [*booted(guest), "lxc.init.cmd = /sbin/openrc-init", "lxc.signal.halt = SIGTERM"]


def tini(guest: Guest) -> list[str]:
    """Debian with one application: nginx."""
    return application(guest, "/usr/sbin/nginx")


def runit(guest: Guest) -> list[str]:
    """Debian with services of runit's, and no other init than what supervises them."""
    return [*stock(guest), "lxc.init.cmd = /usr/bin/runsvdir -P /etc/service", "lxc.signal.halt = SIGHUP"]


def node(guest: Guest) -> list[str]:
    """Debian with a web server in JavaScript."""
    lines = application(guest, "/usr/bin/node /requests.js")
    guest.run("cp", f"{HELPERS}/guests/requests.js", f"{guest.root}/")
    return lines


def application(guest: Guest, command: str) -> list[str]:
    """Debian with tini as init, and a command that it runs."""
    init = f"/usr/bin/tini -- /bin/sh /usr/local/lib/application.sh {command}"
    return [*stock(guest), f"lxc.init.cmd = {init}", "lxc.signal.halt = SIGTERM"]


@dataclass(frozen=True)
class Kind:
    """How one kind is made, and its defaults."""

    fill: Callable[[Guest], list[str]]
    address: str = ""
    size: int = 0
    dirty: float = 0.0
    unprivileged: bool = False
    shipped: bool = False
    """Whether terminals, mounts and signals are left to the configuration that LXC ships."""
    memory: int = 256
    """MiB that it needs in addition to what it is to hold."""
    cgroups: int = 64


KINDS = {
    "tick": Kind(tick),
    "redis": Kind(redis, address="10.0.3.100", size=64),
    "memory": Kind(memory, size=256, dirty=1.0),
    "userns": Kind(userns, unprivileged=True),
    "talk": Kind(talk),
    "systemd": Kind(booted, address="10.0.3.101", shipped=True, memory=1024, cgroups=512),
    "systemd12": Kind(booted, address="10.0.3.101", shipped=True, memory=1024, cgroups=512),
    "sysvinit": Kind(booted, address="10.0.3.101", shipped=True),
    "openrc": Kind(openrc, address="10.0.3.101", shipped=True),
    "tini": Kind(tini, address="10.0.3.101", shipped=True),
    "runit": Kind(runit, shipped=True),
    "node": Kind(node, address="10.0.3.101", shipped=True),
}


def make(guest: Guest) -> None:
    """Make a guest, start it, and wait until it does what it is for."""
    check(guest)
    folder = f"{POOL}/{guest.name}"
    cure = f"rig exec {guest.host} -- lxc-destroy -f -n {guest.name}"
    try:
        guest.run("mkdir", folder)
    except RigError:
        raise RigError(f"{guest.host} already has a {folder}", hint=cure) from None
    try:
        define(guest)
    except RigError:
        # Without a configuration it is not a container to LXC, and lxc-destroy would not know it.
        guest.run("sh", "-c", 'btrfs -q subvolume delete "$0/rootfs"; rm -rf "$0"', folder)
        raise
    guest.run("lxc-start", "-n", guest.name, "-o", f"/var/log/lxc/{guest.name}.log", "-l", "INFO")
    if guest.kind == "redis":
        guest.run("python3", f"{HELPERS}/guests/redis_data.py", "load", guest.address, str(guest.size))
    guest.run("python3", f"{HELPERS}/guests/probe.py", guest.name, "--quick", "--wait", str(LIMIT // 2))


def define(guest: Guest) -> None:
    """Make a guest's root file system and configuration."""
    guest.run("btrfs", "-q", "subvolume", "create", guest.root)
    lines = [*common_lines(guest), *KINDS[guest.kind].fill(guest), *network_lines(guest), *guest.extra]
    guest.put("rootfs/rig-guest.json", json.dumps({"kind": guest.kind, "address": guest.address}) + "\n")
    if guest.unprivileged:
        lines += unprivileged(guest)
    guest.put("config", "\n".join([*lines, ""]))


SHIFT = """
import os, sys
def shift(path):
    found = os.lstat(path)
    os.lchown(path, found.st_uid + int(sys.argv[2]), found.st_gid + int(sys.argv[2]))
    if not os.path.islink(path):
        os.chmod(path, found.st_mode & 0o7777)  # the change of owner has taken the set-user-id bit
shift(sys.argv[1])
for folder, names, files in os.walk(sys.argv[1]):
    for name in names + files:
        shift(os.path.join(folder, name))
"""


def unprivileged(guest: Guest) -> list[str]:
    """Give all files to the mapped ids; return the configuration of the user namespace."""
    guest.run("python3", "-c", SHIFT, guest.root, str(IDMAP_BASE))
    # The mapped root has to pass through here to reach its own root file system.
    guest.run("chmod", "755", f"{POOL}/{guest.name}")
    return [f"lxc.idmap = u 0 {IDMAP_BASE} 65536", f"lxc.idmap = g 0 {IDMAP_BASE} 65536"]


def check(guest: Guest) -> None:
    """Refuse what cannot be made."""
    if guest.host not in LXC_HOSTS:
        raise RigError(f"{guest.host} runs no containers", hint=f"one of {', '.join(LXC_HOSTS)}")
    plain = guest.name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum() and guest.name[0].isalnum() and len(guest.name) <= NAME_LENGTH):
        raise RigError(f"'{guest.name}' is no name for a container", hint="letters, digits, dashes, dots, underscores")
    if guest.kind == "redis" and not guest.address:
        raise RigError("a redis guest needs an address", hint="--ip 10.0.3.100")
    if KINDS[guest.kind].shipped and not guest.unprivileged and not may_raise_limits(guest):
        why = "this machine's root lacks CAP_SYS_RESOURCE: tasks of other users can be moved only in a user namespace"
        raise RigError(why, hint="--unprivileged")
    if guest.address:
        try:
            ipaddress.IPv4Address(guest.address)
        except ValueError:
            raise RigError(f"'{guest.address}' is no IPv4 address", hint="--ip 10.0.3.100") from None


CAP_SYS_RESOURCE = 24


def may_raise_limits(guest: Guest) -> bool:
    """Tell whether CRIU may set the resource limits of tasks that are not root's (prlimit(2)) on the guest's host."""
    status = guest.run("cat", "/proc/self/status")
    return bool(int(status.partition("CapBnd:")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1)


def common_lines(guest: Guest) -> list[str]:
    """Return the configuration that all kinds share."""
    lines = [f"lxc.uts.name = {guest.name}", f"lxc.rootfs.path = btrfs:{guest.root}"]
    if not KINDS[guest.kind].shipped:
        lines.append("lxc.mount.auto = proc:mixed sys:mixed")
        lines += ["lxc.console.path = none", "lxc.tty.max = 0", "lxc.signal.halt = SIGTERM"]
    return [*lines, limit_line(guest)]


def limit_line(guest: Guest) -> str:
    """Return a cgroup limit that this machine has: the cgroup core's own if v1 hierarchies hold all controllers."""
    if "memory" in guest.run("cat", "/sys/fs/cgroup/cgroup.controllers").split():
        return f"lxc.cgroup2.memory.max = {KINDS[guest.kind].memory + 2 * guest.size}M"
    return f"lxc.cgroup2.cgroup.max.descendants = {KINDS[guest.kind].cgroups}"


def network_lines(guest: Guest) -> list[str]:
    """Return the configuration of the guest's network: a fixed address and MAC on lxcbr0, or loopback only."""
    if not guest.address:
        return ["lxc.net.0.type = empty"]
    mac = hashlib.sha256(guest.name.encode()).hexdigest()
    last = guest.address.rpartition(".")[2]
    lines = [
        "lxc.net.0.type = veth",
        "lxc.net.0.link = lxcbr0",
        "lxc.net.0.flags = up",
        "lxc.net.0.name = eth0",
        f"lxc.net.0.hwaddr = 00:16:3e:{mac[0:2]}:{mac[2:4]}:{mac[4:6]}",
        f"lxc.net.0.ipv4.address = {guest.address}/24",
        f"lxc.net.0.ipv6.address = fd00:3::{last}/64",
    ]
    options: dict[str, str] = state.load().get("options", {})
    if any(options.get(side, "none") != "none" for side in ("nat_a", "nat_b")):
        lines.append("lxc.net.0.ipv4.gateway = 10.0.3.1")
    return lines


def probe(host: str, arguments: Sequence[str]) -> str:
    """Return what a guest reports about itself, as JSON."""
    return inside(host, ["python3", f"{HELPERS}/guests/probe.py", *arguments], timeout=LIMIT, check=False)
