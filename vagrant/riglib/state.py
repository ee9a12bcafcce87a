# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rig knows of itself on disk, its lock, and how every trace of it is removed.

Whatever `up` makes hangs on one of three things that are named before it is made: the rig's cgroup (all processes, and with them all
namespaces, mounts, interfaces and loop devices), RUN and LIB. So a killed `up` leaves nothing that `clean` would not find.
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from riglib import paths
from riglib.errors import Busy, RigError
from riglib.run import run


@contextlib.contextmanager
def lock(file: str, *, timeout: float = 300, remove: bool = False) -> Iterator[int]:
    """Hold a lock file. Its descriptor is yielded: a child that inherits it holds the lock after our death until it ends."""
    deadline = time.monotonic() + timeout
    os.makedirs(os.path.dirname(file), exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed by the one who held it before us; then nobody else would see our lock.
            if os.fstat(descriptor).st_ino == os.stat(file).st_ino:
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
            os.unlink(file)
        os.close(descriptor)


def load(directory: str = paths.RUN) -> dict[str, Any]:
    """Return a rig's state; empty when there is no such rig."""
    try:
        with open(f"{directory}/state.json", encoding="utf-8") as file:
            loaded: dict[str, Any] = json.load(file)
            return loaded
    except (OSError, ValueError):
        return {}


def save(state: dict[str, Any]) -> None:
    """Write the rig's state: whole, or not at all."""
    write(f"{paths.RUN}/state.json", json.dumps(state, indent=1))


def write(file: str, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(f"{file}.new", "w", encoding="utf-8") as new:
        new.write(text)
    os.rename(f"{file}.new", file)


def alive(host: str) -> bool:
    """Tell whether a host's init runs."""
    try:
        paths.host_pid(host)
    except RigError:
        return False
    return True


def clean() -> None:
    """Remove every trace of this rig instance. Safe to repeat, and on a rig in any state."""
    kill_cgroup(paths.cgroup())
    free_loops()
    for directory in (paths.LIB, paths.RUN):
        shutil.rmtree(directory, ignore_errors=True)
        if os.path.exists(directory):
            raise RigError(f"cannot remove {directory}", hint=f"fuser -vm {directory}")


def kill_cgroup(top: str, *, timeout: float = 30) -> None:
    """End every process in the rig's own cgroup and remove the cgroup; frozen containers are ended too."""
    if not os.path.isdir(top):
        return
    deadline = time.monotonic() + timeout
    while True:
        with open(f"{top}/cgroup.kill", "w", encoding="ascii") as kill:
            kill.write("1")
        with open(f"{top}/cgroup.events", encoding="ascii") as events:
            if "populated 0" in events.read() and remove_cgroup(top):
                return
        if time.monotonic() > deadline:
            raise RigError(f"processes in {top} do not end", hint=f"cat {top}/cgroup.procs {top}/*/cgroup.procs")
        time.sleep(0.01)


def remove_cgroup(top: str) -> bool:
    """Remove a cgroup and all below it; false when a process still is in the way."""
    try:
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


def loops() -> list[str]:
    """Return the loop devices whose file belongs to this rig instance."""
    found = []
    for file in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as backing:
            if backing.read().startswith(f"{paths.LIB}/"):
                found.append("/dev/" + file.split("/")[3])
    return found


def free_loops(*, timeout: float = 30) -> None:
    """Wait until the kernel has freed the rig's loop devices: they are autoclear, and go with the mount namespace of their host."""
    deadline = time.monotonic() + timeout
    while left := loops():
        if time.monotonic() > deadline:
            raise RigError(f"still in use: {', '.join(left)}", hint="losetup -a; grep loop /proc/*/mounts")
        time.sleep(0.02)
        # One that a killed mount(8) set up but never mounted is nobody's: detach it.
        for device in left:
            run(["losetup", "--detach", device], check=False)
