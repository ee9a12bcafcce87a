# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about a running container that decide whether, and how, it can be moved. Gathered on the source.

`quick` facts take a few hundredths of a second and are gathered again right before the freeze; `full` ones add what
requires a walk through the root file system, and what only leads to warnings about what a restore leaves out.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from migrator.base import log
from migrator.config import config_reader, consent, lxc_settings, mount_file, seccomp_profile
from migrator.config.container_config import unfenced
from migrator.config.lxc_settings import Config
from migrator.errors.containers import ConfigInvalid
from migrator.errors.data import SnapshotFailed
from migrator.host import cgroups, lxc, mountinfo, net_state, roots
from migrator.host.mountinfo import Mount, parse_mountinfo
from migrator.host.net_state import Interface, Unsaved
from migrator.host.proc import link, read_text
from migrator.preflight.facts import apparmor_facts, fixed_paths, mounts_seen, task_facts
from migrator.preflight.facts.apparmor_facts import AppArmor
from migrator.preflight.facts.task_facts import Note, Tasks

if TYPE_CHECKING:
    from migrator.host.lxc import Container

FROZEN_MAX = 100  # cgroups
WALK_LIMIT = 20.0  # seconds for adding up the root file system's size


@dataclasses.dataclass(frozen=True)
class Rootfs:
    path: str
    filesystem: str = ""
    subvolume: bool = False
    nested: tuple[str, ...] = ()  # subvolumes inside: a snapshot leaves them out
    nested_unknown: str = ""  # why these could not be determined
    used: int = -1  # bytes on disk; -1 if nobody counted
    quota: tuple[tuple[str, int, int], ...] = ()  # see `btrfs.quota`; only if someone has counted
    replaced: bool = False  # PID 1 lives in a different one


@dataclasses.dataclass(frozen=True)
class ContainerFacts:
    name: str
    lxcpath: str
    state: str
    init_pid: int = 0  # on this host; 0 if it does not run
    init_name: str = ""
    init_root: str = "/"  # PID 1's root as shown in /proc: "/" unless it is in a chroot
    config: Config = dataclasses.field(default_factory=Config)
    rootfs: Rootfs = dataclasses.field(default_factory=lambda: Rootfs(""))
    memory: int = 0  # bytes of pages that must be dumped: anonymous and shared
    tasks: Tasks = dataclasses.field(default_factory=Tasks)
    mounts: tuple[Mount, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    unsaved: Unsaved = dataclasses.field(default_factory=Unsaved)  # of its network; only in a full look
    networks: int = 1  # how many network namespaces its processes are in
    encrypted: tuple[str, ...] = ()  # what the kernel encrypts for it in these, or in the first `NAMESPACES_MAX`
    apparmor: AppArmor = dataclasses.field(default_factory=AppArmor)
    reaches: tuple[str, ...] = ()  # lines of its configuration that reach out of it, on whatever host
    seccomp_kept: str = ""  # why it cannot be given a copy of its seccomp profile with more rules
    seccomp_changed: str = ""  # the profile that it has a copy of, if that has changed since (`seccomp_profile`)
    included: tuple[str, ...] = ()  # what its configuration includes of the host's own files
    cgroup_shared: str = ""  # its cgroup, if LXC has not named that for this container alone
    controllers: tuple[str, ...] = ()  # that its cgroup enables for its children
    ephemeral: bool = False  # it runs so: LXC destroys it once it stops
    frozen: tuple[str, ...] = ()  # the directories of some of the cgroups that stay frozen when its own is thawed
    fixed: tuple[str, ...] = ()  # those paths in it, named by cures, that only its root can make lead elsewhere
    owned: tuple[str, ...] = ()  # likewise, of a subvolume for which only its root and its owner can


def gather(container: Container, *, full: bool = True) -> ContainerFacts:
    """Look at a container. A stopped one has a configuration and a root file system, but no tasks."""
    begun = time.monotonic()
    config = lxc_settings.read(container.config_file)
    text = _own_text(container)
    state = container.state
    facts = ContainerFacts(
        name=container.name, lxcpath=str(container.lxcpath), state=state, config=config,
        reaches=tuple(consent.reaching(text, lambda _: True)),
        seccomp_kept=_seccomp_kept(container),
        seccomp_changed=seccomp_profile.outdated(config.seccomp),
        included=tuple(filter(consent.is_hosts_own, config_reader.included(text))),
        rootfs=look_at_rootfs(Path(config.rootfs or container.rootfs), full=full),
    )
    if state in ("RUNNING", "FROZEN"):
        try:
            cgroup, shared = container.cgroup, ""
        except ConfigInvalid:
            cgroup = lxc.cgroup_of(container.init_pid)
            shared = str(cgroup)
        facts = dataclasses.replace(_running(facts, container.init_pid, cgroup), ephemeral=container.is_ephemeral,
                                    cgroup_shared=shared)
        if full:
            facts = dataclasses.replace(facts, unsaved=net_state.unsaved(facts.init_pid))
    log.debug(f"facts about {container.name}: {(time.monotonic() - begun) * 1000:.0f} ms")
    return facts


def _own_text(container: Container) -> str:
    """The text of its own configuration, as it travels; if it cannot be read, that is reported as a fault."""
    try:
        text = unfenced(config_reader.read_file(str(container.config_file)))
        return mount_file.inlined(text, str(container.config_file))
    except OSError:
        return ""


def _seccomp_kept(container: Container) -> str:
    try:
        return seccomp_profile.kept(container.config_file)
    except OSError as error:
        return str(error)


def _running(facts: ContainerFacts, init: int, cgroup: Path) -> ContainerFacts:
    pids = [pid for pid in cgroups.processes(str(cgroup)) if pid > 0]
    tasks, networks = task_facts.gather(init, pids), net_state.namespaces(init, pids)
    seen = mounts_seen.MountsSeen()
    lines = seen.by(init).lines
    if not seen.are_all:
        tasks = dataclasses.replace(tasks, complete=False, notes=(
            *tasks.notes, Note(mounts_seen.TOO_MANY, "", pid=init, task=read_text(f"/proc/{init}/comm").strip())))
    mounts = mountinfo.classify(lines, parse_mountinfo(read_text("/proc/self/mountinfo")),
                                [entry.target for entry in facts.config.mounts if entry.bind])
    fixed, owned = fixed_paths.gather(
        init, lines, [mount.target for mount in mounts if mount.kind not in ("root", "own")],
        [note.detail for note in tasks.notes if note.kind == "watch-symlink"],
        [f"/{name}" for name in facts.rootfs.nested[:1]])
    return dataclasses.replace(
        facts, init_pid=init, init_name=read_text(f"/proc/{init}/comm").strip(),
        init_root=link(f"/proc/{init}/root") or "/", tasks=tasks,
        rootfs=dataclasses.replace(facts.rootfs, replaced=roots.is_elsewhere(init, Path(facts.rootfs.path))),
        memory=memory_of(read_text(str(cgroup / "memory.stat")),
                         read_text(str(cgroup / "memory.swap.current"))) or tasks.memory,
        mounts=mounts, fixed=fixed, owned=owned,
        interfaces=net_state.interfaces(init), networks=len(networks),
        encrypted=net_state.encrypted(networks[:net_state.NAMESPACES_MAX]),
        frozen=tuple(os.fsencode(path).decode(errors="replace")
                     for path in cgroups.frozen_besides(str(cgroup))[:FROZEN_MAX]),
        controllers=tuple(read_text(str(cgroup / "cgroup.subtree_control")).split()),
        apparmor=apparmor_facts.gather(init, Path(facts.lxcpath) / facts.name),
    )


def memory_of(stat: str, swap: str) -> int:
    """Bytes that a dump has to save, from a cgroup's memory.stat and memory.swap.current (cgroup-v2.rst).

    Not the page cache, but what has been swapped out, which CRIU reads back. Some of that may be in memory as well.
    """
    total = int(swap) if swap.strip().isdecimal() else 0
    for line in stat.splitlines():
        key, _, value = line.partition(" ")
        if key in ("anon", "shmem") and value.isdecimal():
            total += int(value)
        elif key == "swapcached" and value.isdecimal():  # counted as both
            total -= int(value)
    return max(0, total)


def look_at_rootfs(path: Path, *, full: bool) -> Rootfs:
    """The root file system; its size and quotas only if `full`."""
    kind = filesystem(path)
    if kind != "btrfs":
        return Rootfs(str(path), kind, used=used_bytes(path) if full else -1)
    from migrator.host import btrfs

    subvolume, nested, unknown = btrfs.is_subvolume(path), [], ""
    if subvolume:
        try:
            nested = btrfs.nested(path)
        except SnapshotFailed as error:
            unknown = str(error)
    quota = btrfs.quota(path) if subvolume and full else []
    return Rootfs(str(path), kind, subvolume, tuple(nested), unknown, used_bytes(path) if full else -1,
                  quota=tuple(quota))


def filesystem(path: Path) -> str:
    """The type of the file system that `path` is on, as named in /proc/self/mountinfo; "" if unknown."""
    try:
        target = os.path.realpath(path, strict=True)
    except OSError:
        return ""
    best = None
    for line in parse_mountinfo(read_text("/proc/self/mountinfo")):
        inside = line.target == "/" or target == line.target or target.startswith(line.target + "/")
        if inside and (best is None or len(line.target) >= len(best.target)):
            best = line
    return best.type if best else ""


def used_bytes(path: Path) -> int:
    """What the files below `path` take on disk, without other file systems; -1 if it takes too long to add up."""
    end = time.monotonic() + WALK_LIMIT
    total = 0
    waiting = [str(path)]
    while waiting:
        if time.monotonic() > end:
            return -1
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False) and not os.path.ismount(entry.path):
                    waiting.append(entry.path)
            except OSError:
                continue
    return total
