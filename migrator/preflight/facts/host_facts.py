# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about a host that decide whether a container can leave it or come to it.

Gathered on both hosts; the destination's come over the wire. What the destination is asked for depends on the
container: `Query` carries that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import stat
import time
from pathlib import Path

import migrator
from migrator.base import programs
from migrator.base.run import run
from migrator.config import config_reader, lxc_settings, seccomp_profile
from migrator.config.lxc_settings import IdMap
from migrator.errors import MigratorError
from migrator.host import net_state
from migrator.host.net_state import Interface, Neighbour
from migrator.host.proc import link, read_text
from migrator.preflight.facts import apparmor_facts, criu_facts
from migrator.preflight.facts.container_facts import filesystem
from migrator.preflight.facts.criu_facts import CriuFacts

NEIGHBOURS_MAX = 2_000  # containers looked at
PATHS_MAX = 500
PROGRAMS = ("criu", "btrfs", "ip", "nsenter", "lxc-checkpoint", "lxc-start", "lxc-stop", "newuidmap", "nft",
            "iptables-restore", "tar", "apparmor_parser")
CAP_SYS_RESOURCE = 1 << 24  # capabilities(7), linux/capability.h


@dataclasses.dataclass(frozen=True)
class Query:
    """What a host is to look for, besides what it always does."""

    lxcpath: str
    paths: tuple[str, ...] = ()  # files and devices that the container's mounts need
    includes: tuple[str, ...] = ()  # files that its configuration includes


@dataclasses.dataclass(frozen=True)
class Storage:
    """The file system below a path, or below its nearest parent that exists."""

    path: str
    exists: bool = False
    filesystem: str = ""
    free: int = 0  # bytes
    total: int = 0  # bytes


@dataclasses.dataclass(frozen=True)
class Other:
    """A container that is already there."""

    name: str
    running: bool = False
    addresses: tuple[str, ...] = ()  # with prefix length, from its configuration
    macs: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()  # names of veths on the host
    idmaps: tuple[IdMap, ...] = ()


@dataclasses.dataclass(frozen=True)
class HostFacts:
    name: str
    identity: str = ""  # the same only for one and the same running system
    time: float = 0.0  # Unix time in seconds
    uptime: float = 0.0  # seconds
    kernel: str = ""
    arch: str = ""
    page_size: int = 4096  # bytes
    migrator: str = ""
    lxc: str = ""  # version; empty: not installed
    python_lxc: bool = False
    btrfs_progs: str = ""
    programs: tuple[str, ...] = ()  # those of PROGRAMS that are installed
    criu: CriuFacts = dataclasses.field(default_factory=CriuFacts)
    cgroups: str = ""  # "unified", "hybrid", "legacy" or ""
    controllers: tuple[str, ...] = ()  # of cgroup v2
    storage: Storage = dataclasses.field(default_factory=lambda: Storage(""))  # of the LXC path
    memory_total: int = 0  # bytes
    memory_available: int = 0  # bytes, without swapping anything out
    swap_free: int = 0  # bytes
    interfaces: tuple[Interface, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    containers: tuple[Other, ...] = ()
    apparmor: bool = False
    apparmor_profiles: tuple[str, ...] | None = None  # None: they cannot be listed
    selinux: str = ""  # "enforcing", "permissive" or ""
    capabilities: int = 0  # effective, as bits
    user_namespaces: int = 0  # how many may be created
    uid_map: tuple[IdMap, ...] = ()  # the ids that exist here, if this host is itself in a user namespace
    subids: tuple[IdMap, ...] = ()  # root's in /etc/subuid ("u") and /etc/subgid ("g")
    time_namespaces: bool = False
    hooks_fix: str = ""  # what must be done there so that it accepts what reaches out of a container; "" if it does
    present: dict[str, str] = dataclasses.field(default_factory=dict)  # of the query's paths: see `path_kind`
    digests: dict[str, str] = dataclasses.field(default_factory=dict)  # of those of the query's includes that exist

    def has_program(self, name: str) -> bool:
        return name in self.programs

    @property
    def kernel_version(self) -> tuple[int, ...]:
        return version_tuple(self.kernel)


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: (6, 18) for "6.18-rc1"; () if it begins with none."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > 9:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def gather(query: Query) -> HostFacts:
    """Look at this host. Missing programs leave their facts empty; nothing here raises because of that."""
    system = os.uname()
    memory = parse_meminfo(read_text("/proc/meminfo"))
    profiles = read_text(str(apparmor_facts.SECURITY / "profiles"))
    return HostFacts(
        name=system.nodename, identity=_identity(), time=time.time(), uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
        kernel=system.release, arch=system.machine, page_size=os.sysconf("SC_PAGE_SIZE"),
        migrator=migrator.__version__, lxc=_version(["lxc-start", "--version"]),
        python_lxc=importlib.util.find_spec("lxc") is not None,
        btrfs_progs=_version(["btrfs", "--version"]).removeprefix("btrfs-progs ").removeprefix("v"),
        programs=tuple(name for name in PROGRAMS if programs.find(name)),
        criu=criu_facts.gather(), cgroups=_cgroup_layout(),
        controllers=tuple(read_text("/sys/fs/cgroup/cgroup.controllers").split()),
        storage=storage(Path(query.lxcpath)),
        memory_total=memory.get("MemTotal", 0), memory_available=memory.get("MemAvailable", 0),
        swap_free=memory.get("SwapFree", 0),
        interfaces=net_state.interfaces(), neighbours=net_state.neighbours(),
        containers=containers(Path(query.lxcpath), active(read_text("/proc/net/unix"), query.lxcpath)),
        apparmor=apparmor_facts.enabled(),
        apparmor_profiles=tuple(line.rpartition(" (")[0] for line in profiles.splitlines()) if profiles else None,
        selinux={"1": "enforcing", "0": "permissive"}.get(read_text("/sys/fs/selinux/enforce").strip(), ""),
        capabilities=_capabilities(read_text("/proc/self/status")),
        user_namespaces=_integer(read_text("/proc/sys/user/max_user_namespaces")),
        uid_map=parse_id_map("u", read_text("/proc/self/uid_map")) + parse_id_map("g", read_text("/proc/self/gid_map")),
        subids=parse_subids("u", read_text("/etc/subuid")) + parse_subids("g", read_text("/etc/subgid")),
        time_namespaces=Path("/proc/self/ns/time").exists(),
        present={path: kind for path in query.paths[:PATHS_MAX] if path.startswith("/")
                 and (kind := path_kind(path) or ("file" if seccomp_profile.can_be_made(path) else ""))},
        digests={path: found for path in query.includes[:config_reader.INCLUDE_LIMIT] if (found := digest(path))},
    )


def path_kind(path: str) -> str:
    """What there is: "folder", "file", "symlink" (to something), "device" or "other"; "" for nothing."""
    try:
        mode = Path(path).lstat().st_mode
        if stat.S_ISLNK(mode):
            return "symlink" if Path(path).exists() else ""
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return ""
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def digest(path: str) -> str:
    """The digest of a configuration that containers include; "" if there is none.

    Nothing is revealed about other files.
    """
    try:
        if not (path.startswith("/") and Path(path).is_file()):  # opening a device may have side effects
            return ""
        text = config_reader.read_file(path)
    except (OSError, ValueError):
        return ""
    return config_reader.digest(text) if config_reader.settings(text) else ""


def _identity() -> str:
    parts = [read_text("/proc/sys/kernel/random/boot_id"), link("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _version(argv: list[str]) -> str:
    try:
        return run(argv, limit=10.0).text.strip().splitlines()[0]
    except (MigratorError, IndexError):
        return ""


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            found[key] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _cgroup_layout() -> str:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "unified"
    if Path("/sys/fs/cgroup/unified/cgroup.controllers").exists():
        return "hybrid"
    return "legacy" if Path("/sys/fs/cgroup").is_dir() and any(Path("/sys/fs/cgroup").iterdir()) else ""


def storage(path: Path) -> Storage:
    """The space below `path`; a path that does not exist yet counts as its nearest parent."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        room = os.statvfs(there)
    except OSError:
        return Storage(str(path))
    block = room.f_frsize
    return Storage(str(path), path.exists(), filesystem(there), room.f_bavail * block, room.f_blocks * block)


def active(unix_sockets: str, lxcpath: str) -> frozenset[str]:
    """The names of the running containers, by their monitors' sockets in /proc/net/unix, as lxc-ls finds them."""
    found = set()
    for line in unix_sockets.split("\n"):  # anybody may put any other line separator into a socket's name
        name = line.rpartition(" @")[2]
        if name.startswith(lxcpath.rstrip("/") + "/") and name.endswith("/command"):
            found.add(name[len(lxcpath.rstrip("/")) + 1 : -len("/command")])
    return frozenset(found)


def containers(lxcpath: Path, running: frozenset[str]) -> tuple[Other, ...]:
    """The containers below an LXC path, from their configurations."""
    try:
        folders = sorted(entry for entry in lxcpath.iterdir() if (entry / "config").is_file())
    except OSError:
        return ()
    return tuple(_other(folder, folder.name in running) for folder in folders[:NEIGHBOURS_MAX])


def _other(folder: Path, running: bool) -> Other:
    config = lxc_settings.read(folder / "config")
    return Other(
        name=folder.name, running=running,
        addresses=tuple(address for net in config.nets for address in net.addresses),
        macs=tuple(net.hwaddr for net in config.nets if net.hwaddr),
        pairs=tuple(net.pair for net in config.nets if net.pair), idmaps=config.idmaps,
    )


def _capabilities(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _integer(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def parse_id_map(kind: str, text: str) -> tuple[IdMap, ...]:
    """/proc/PID/uid_map or gid_map (user_namespaces(7)). The full range, as outside a user namespace, is ()."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and all(field.isdecimal() for field in fields):
            found.append(IdMap(kind, *(int(field) for field in fields)))
    return () if [(entry.inside, entry.count) for entry in found] == [(0, 2**32 - 1)] else tuple(found)


def parse_subids(kind: str, text: str) -> tuple[IdMap, ...]:
    """Root's ranges in /etc/subuid or /etc/subgid (subuid(5))."""
    found = []
    for line in text.splitlines():
        owner, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if owner in ("root", "0") and first.isdecimal() and count.isdecimal():
            found.append(IdMap(kind, 0, int(first), int(count)))
    return tuple(found)
