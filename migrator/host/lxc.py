# SPDX-License-Identifier: GPL-2.0-or-later
"""A container on this host, through python3-lxc, and the cgroup that its processes live in.

python3-lxc comes with the distribution and is imported only when a container is looked at.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from migrator.base import log, process_id
from migrator.base.run import run
from migrator.errors import MigratorError
from migrator.errors.containers import ConfigInvalid, ContainerNotFound, ContainerNotRunning
from migrator.errors.memory import FreezeFailed
from migrator.errors.this_host import CommandTimeout, PackageMissing
from migrator.host import cgroups, monitor_socket, roots

CGROUP = Path(cgroups.TOP)
PROC = Path("/proc")
POLL = 0.002  # seconds between two looks at a cgroup file
FREEZE_LIMIT = 10.0  # seconds
TELL_LIMIT = 10.0  # seconds that a container's monitor may take to be told
STOP_LIMIT = 30.0  # seconds
END_LIMIT = 10.0  # seconds that a killed process may take to leave its cgroup: it has to free its memory first


def _lxc() -> Any:
    try:
        import lxc
    except ImportError as error:
        raise PackageMissing(module="lxc", package="python3-lxc", reason=error) from error
    return lxc


def default_lxcpath() -> Path:
    """Where LXC keeps containers by default (`lxc.lxcpath` in lxc.conf, see lxc.system.conf(5))."""
    return Path(str(_lxc().default_config_path))


class Container:
    """One container. Raises ContainerNotFound if it has no configuration and must have one."""

    def __init__(self, name: str, lxcpath: Path, *, defined: bool = True) -> None:
        self.name = name
        self.lxcpath = lxcpath
        if defined and not self.config_file.is_file():
            raise ContainerNotFound(name=name, lxcpath=lxcpath)
        self._container = _lxc().Container(name, str(lxcpath))
        self._told_of_stranger = False

    @property
    def folder(self) -> Path:
        return self.lxcpath / self.name

    @property
    def config_file(self) -> Path:
        return self.folder / "config"

    @property
    def state(self) -> str:
        """LXC's word for it: STOPPED, RUNNING, FROZEN, ...; STOPPED if a stranger answers. Raises CommandTimeout."""
        return str(self._asked(lambda: self._container.state) or "STOPPED")

    @property
    def init_pid(self) -> int:
        """The container's PID 1 as this host sees it; raises ContainerNotRunning.

        A process that is neither in a cgroup of that name nor in its root file system is not the container's.
        """
        pid = int(self._asked(lambda: self._container.init_pid) or 0)
        if pid <= 0 or not self._is_its_own(pid):
            raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state=self.state)
        return pid

    def _is_its_own(self, pid: int) -> bool:
        with contextlib.suppress(OSError, ValueError):
            cgroup_of(pid, self.name)
            return True
        with contextlib.suppress(OSError):
            return roots.is_in(pid, self.rootfs)
        return False

    def _asked(self, question: Callable[[], Any]) -> Any:
        """LXC's answer, or None if its monitor is not there.

        That is checked before and after, because the monitor may go meanwhile and a stranger take its place.
        """
        if self._has_monitor():
            answer = question()
            if self._has_monitor():
                return answer
        return None

    def _has_monitor(self) -> bool:
        return self._answering() == monitor_socket.ROOT

    def is_impersonated(self) -> bool:
        """Whether a user other than root would answer in place of LXC's monitor."""
        return self._answering() not in (None, monitor_socket.ROOT)

    def _answering(self) -> int | None:
        """The user who answers as the monitor; if that is not root, it is logged once."""
        held = monitor_socket.holder(self.name, self.lxcpath)
        if held is None:
            return None
        pid, user = held
        if user != monitor_socket.ROOT and not self._told_of_stranger:
            self._told_of_stranger = True
            log.warning(f"Process {pid} of user {user} answers in place of LXC's monitor of {self.name}, and is not "
                        f"trusted; as long as it lives, {self.name} cannot be started")
        return user

    def config_item(self, key: str) -> str:
        """The value of a configuration item; multiple values are joined by newlines, an unset one is ""."""
        try:
            value = self._container.get_config_item(key)
        except KeyError:
            return ""
        return "\n".join(value) if isinstance(value, list) else str(value or "")

    @property
    def is_ephemeral(self) -> bool:
        """Whether LXC destroys it, disk and all, once it stops. Raises CommandTimeout.

        Its monitor does that, according to what it read at the start (lxc_end in liblxc's start.c).
        """
        running = self._asked(lambda: self._container.get_running_config_item("lxc.ephemeral"))
        return str(running or self.config_item("lxc.ephemeral")) == "1"

    @property
    def rootfs(self) -> Path:
        """The root file system's directory, without LXC's storage prefix (`btrfs:`, `dir:`)."""
        return rootfs_path(self.config_item("lxc.rootfs.path"))

    @property
    def cgroup(self) -> Path:
        """The cgroup v2 directory that holds all of the container's processes, and no others.

        Read from PID 1 itself: a stale `lxc.payload.NAME` makes it `lxc.payload.NAME-1`, and a systemd inside moves
        itself on into `init.scope`. Raises ConfigInvalid if LXC has not named it for this container alone.
        """
        try:
            return cgroup_of(self.init_pid, self.name)
        except ValueError as error:
            raise ConfigInvalid(name=self.name, reason=f"its cgroup is not its own: {error}.") from error

    def tell_frozen(self) -> None:
        """Let LXC know that the container, already frozen, is frozen."""
        self._tell("lxc-freeze", "for running")

    def tell_thawed(self) -> None:
        """Let LXC know that the container runs again."""
        self._tell("lxc-unfreeze", "for frozen")

    def _tell(self, program: str, otherwise: str) -> None:
        """Tell LXC by running a program, which can be killed: liblxc waits for the container's monitor without a limit.

        Only the output of lxc-ls depends on it, so a failure is just logged. A stranger is told nothing, because these
        programs write where the stranger says.
        """
        try:
            if self.is_impersonated():
                return
            run([program, "-n", self.name, "-P", self.lxcpath], limit=TELL_LIMIT)
        except (MigratorError, OSError) as error:
            log.warning(f"LXC still takes {self.name} {otherwise}: {error}")

    @property
    def mapped_root(self) -> int:
        """The uid of the container's root on this host: 0 without a user namespace."""
        for line in self.config_item("lxc.idmap").splitlines():
            kind, inside, outside, _count = line.split()
            if (kind, inside) == ("u", "0"):
                return int(outside)
        return 0


def told_state(container: Container) -> str:
    """Its state; STOPPED if whoever listens accepts no connection, as a stranger may: its processes tell more."""
    try:
        return container.state
    except CommandTimeout:
        log.warning(f"LXC's monitor of {container.name}, or someone in its place, accepts no connection: LXC cannot "
                    "be asked about it")
        return "STOPPED"


def rootfs_path(value: str) -> Path:
    """The directory in a value of `lxc.rootfs.path` such as `btrfs:/pool/c1/rootfs`."""
    head, colon, rest = value.partition(":")
    return Path(rest if colon and not head.startswith("/") else value)


def payload_cgroup(proc_cgroup: str, name: str = "") -> Path:
    """The payload's cgroup directory from the text of /proc/PID/cgroup, see `cgroups.payload`; raises ValueError."""
    return Path(cgroups.payload(proc_cgroup, name))


def cgroup_of(pid: int, name: str = "") -> Path:
    """A process's `payload_cgroup`; raises OSError, ValueError."""
    return payload_cgroup(os.fsdecode(Path(f"/proc/{pid}/cgroup").read_bytes()), name)


def is_payload(name: str, cgroup: Path) -> bool:
    """Whether LXC uses this name for the payload cgroup of container `name`; with a number if the name was taken."""
    return cgroups.is_named(cgroup.name, name)


def is_frozen(cgroup: Path) -> bool:
    """Whether every process below `cgroup` has stopped (cgroup.events, cgroup-v2.rst in the kernel's documents)."""
    return "frozen 1" in (cgroup / "cgroup.events").read_text()


def is_held(cgroup: Path) -> bool:
    """Whether freezing was requested and not revoked since, even if some processes have not stopped yet.

    That happens after CRIU has let go of them: each counts as stopped only once it has been scheduled (cgroup.freeze,
    ibid.).
    """
    return (cgroup / "cgroup.freeze").read_text().strip() == "1"


def freeze(container: Container, cgroup: Path, limit: float = FREEZE_LIMIT) -> None:
    """Stop every process below `cgroup` where CRIU can dump it; raises FreezeFailed (and thaws) after `limit` seconds.

    We write to the cgroup directly, because LXC's own freeze waits without a limit; then LXC is told, so that lxc-ls
    shows FROZEN.

    A task that has just called vfork(2), as posix_spawn(3) does, cannot be interrupted until its child has executed its
    program. The kernel counts it as frozen (wait_for_vfork_done in kernel/fork.c), but CRIU waits for it for 10 seconds
    and then fails. So the container is given a moment to get past that and is frozen again.
    """
    end = time.monotonic() + limit
    while True:
        (cgroup / "cgroup.freeze").write_text("1")
        # "Frozen" is reported a little early: some tasks may still be on their way to where they stop.
        still = wait(lambda: is_frozen(cgroup) and "R" not in states(cgroup), end - time.monotonic())
        if still and "D" not in states(cgroup):
            break
        (cgroup / "cgroup.freeze").write_text("0")
        if time.monotonic() > end:
            container.tell_thawed()
            raise FreezeFailed(name=container.name, limit=f"{limit:g}")
        time.sleep(POLL)
    container.tell_frozen()


def thaw(container: Container, cgroup: Path) -> None:
    """Let the processes below `cgroup` run again, and tell LXC."""
    thaw_cgroup(cgroup)
    container.tell_thawed()


def thaw_cgroup(cgroup: Path) -> None:
    """Let the processes below `cgroup` run again; raises OSError."""
    (cgroup / "cgroup.freeze").write_text("0")


def processes(cgroup: Path) -> list[int]:
    """The pids of all processes below `cgroup`; empty if it is gone."""
    return cgroups.processes(str(cgroup))


def states(cgroup: Path) -> set[str]:
    """The states of threads below `cgroup`, as in proc_pid_stat(5): R is running, D uninterruptible."""
    found = set()
    for thread in cgroups.ids(str(cgroup), "cgroup.threads"):
        with contextlib.suppress(OSError):
            found.add(process_id.stat_fields(int(thread))[0].decode())
    return found


def payload_processes(name: str) -> list[int]:
    """The processes that may be those of container `name`; their roots tell whose they are.

    These are the processes in all payload cgroups of that name and of names that begin with it; and, wherever they are,
    all that have a root other than this host's: with lxc.cgroup.dir, lxc.cgroup.relative (lxc.container.conf(5)) or
    lxc.cgroup.pattern (lxc.system.conf(5)), LXC makes a container's cgroup somewhere else.
    """
    return sorted({*_named(name), *_rooted_elsewhere()})


def container_processes(name: str) -> list[int]:
    """Those of `payload_processes` that are a container's and not a visitor's.

    A process with its root elsewhere but in this host's pid namespace, and in no cgroup of such a name, has merely
    called chroot: an administrator looking around. A container that shares that namespace is not moved (`check`).
    """
    named, ours = _named(name), pid_namespace("self")  # once: a thaw is waiting for it
    return sorted({*named, *(pid for pid in _rooted_elsewhere() if pid_namespace(pid) not in (None, ours))})


def _named(name: str) -> list[int]:
    return [pid for cgroup in CGROUP.glob(f"lxc.payload.{name}*") for pid in processes(cgroup)]


def pid_namespace(pid: int | str) -> str | None:
    """None if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return os.readlink(PROC / f"{pid}/ns/pid")  # noqa: PTH115 -- it is no path
    return None


def _rooted_elsewhere() -> Iterator[int]:
    """Of all processes. One on a mount whose server is gone is not waited for: see `roots`."""
    here = roots.at(Path("/"))
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                if roots.of(int(folder.name), PROC) != here:
                    yield int(folder.name)


def lives_in(name: str, rootfs: Path) -> bool:
    """Whether a process has its root in `rootfs`, under any spelling of the LXC path, even if its monitor is gone.

    A visitor's counts too: so ask this before removing it.
    """
    return _has_root(rootfs, payload_processes(name))


def runs_in(name: str, rootfs: Path) -> bool:
    """As `lives_in`, for a container's processes only."""
    return _has_root(rootfs, container_processes(name))


def _has_root(rootfs: Path, pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(OSError):
            if roots.is_in(pid, rootfs, PROC):
                return True
    return False


def wait(condition: Callable[[], bool], limit: float) -> bool:
    """Whether it becomes true within `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True
