# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rig records about itself on disk, its lock, and how every trace of it is removed.

Whatever `up` makes is attached to one of three things whose names are known before anything is made: the rig's cgroup
(all processes, and with them all namespaces, mounts, interfaces and loop devices), RUN and LIB. So `clean` finds
everything that a killed `up` has left.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riglib import legacy, paths
from riglib.errors import Busy, RigError
from riglib.run import run


@contextlib.contextmanager
def lock(file: Path, *, timeout: float = 300, remove: bool = False) -> Iterator[int]:
    """Hold a lock file; yield its descriptor: a child that inherits it also holds the lock until the child ends."""
    deadline = time.monotonic() + timeout
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file; then nobody else would see our lock.
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Busy(f"{file} is held by another process", hint=f"fuser -v {file}") from None
            time.sleep(0.05)
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        if remove:
            file.unlink()
        os.close(descriptor)


def load(directory: str = "") -> dict[str, Any]:
    """Return a rig's state, ours if no other is named; empty if there is no such rig."""
    try:
        loaded: dict[str, Any] = json.loads(Path(directory or paths.RUN, "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded


def save(state: dict[str, Any]) -> None:
    """Write the rig's state: completely, or not at all."""
    write(Path(paths.RUN, "state.json"), json.dumps(state, indent=1))


def write(file: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(file)


def alive(host: str) -> bool:
    """Tell whether a host's init runs, and its machine if it is one."""
    try:
        paths.host_pid(host)
        paths.machine_pid(host)
    except RigError:
        return False
    return True


def clean(hosts: tuple[str, ...]) -> None:
    """Remove every trace of this rig instance. Safe to repeat, and on a rig in any state."""
    v1 = legacy.host_folders(hosts)
    kill_cgroup(Path(paths.cgroup()))
    legacy.sweep(v1)
    free_loops()
    for directory in (paths.LIB, paths.RUN):
        shutil.rmtree(directory, ignore_errors=True)
        if Path(directory).exists():
            raise RigError(f"cannot remove {directory}", hint=f"fuser -vm {directory}")


def kill_cgroup(top: Path, *, timeout: float = 100) -> None:
    """End every process in the rig's own cgroup, including frozen ones, and remove the cgroup."""
    if not top.is_dir():
        return
    deadline = time.monotonic() + timeout
    while True:
        (top / "cgroup.kill").write_text("1", encoding="ascii")
        if "populated 0" in (top / "cgroup.events").read_text(encoding="ascii") and remove_cgroup(top):
            return
        legacy.thaw(processes(top))
        if time.monotonic() > deadline:
            raise RigError(f"processes in {top} do not end: {processes(top)}", hint="cat /proc/PID/stack")
        time.sleep(0.01)


def processes(top: Path) -> list[int]:
    """Return the pids of all processes in a cgroup and below it."""
    found = []
    for file in top.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in file.read_text(encoding="ascii").split()]
    return found


def remove_cgroup(top: Path) -> bool:
    """Remove a cgroup and everything below it; false if a process is still in the way."""
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            Path(directory).rmdir()
    except OSError:
        return False
    return True


def loops() -> list[str]:
    """Return the loop devices whose file belongs to this rig instance."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8", errors="replace").startswith(f"{paths.LIB}/"):
                found.append(f"/dev/{file.parts[3]}")
    return found


def free_loops(*, timeout: float = 100) -> None:
    """Wait until the kernel has freed the rig's loop devices: autoclear ends them with their host's mount namespace."""
    deadline = time.monotonic() + timeout
    while left := loops():
        if time.monotonic() > deadline:
            raise RigError(f"still in use: {', '.join(left)}", hint="losetup -a; grep loop /proc/*/mounts")
        time.sleep(0.02)
        # A device that a killed mount(8) set up but never mounted belongs to nobody: detach it.
        for device in left:
            run(["losetup", "--detach", device], check=False)
