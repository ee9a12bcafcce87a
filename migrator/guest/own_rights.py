# SPDX-License-Identifier: GPL-2.0-or-later
"""Irrevocably turn this process into root of a container, in the mount namespace of one of its processes.

Every path is then looked up as the container's own root would look it up, so its symlinks cannot lead to anything of
the host's. None of the host's privileges are left: in a container with a user namespace the kernel sees to that; in any
other, the capabilities that the container's first process cannot have are dropped too. The process stays in the host's
PID namespace and in its own cgroup, so that nobody in the container sees it, and it is not frozen along with it.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from migrator.base import libc

_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000  # CLONE_NEWUSER, CLONE_NEWNS


def take(pid: int, namespace: str, first: int) -> None:
    """Enter the namespaces of process `pid`, with no more rights than `first`, the container's first process, may have.

    Raises OSError, also if the mount namespace of `pid` is not `namespace` any more, or if it is not a process of the
    container. Nothing can be imported afterwards: modules would be looked up in the container.
    """
    sys.path.clear()
    sys.meta_path.clear()
    bounding = _bounding(first)
    mounts, users = (os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("mnt", "user"))
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    if str(Path(f"/proc/self/fd/{mounts}").readlink()) != namespace:  # its id has been reused
        raise ProcessLookupError(f"process {pid} has ended")
    if _pid_namespace(pid) != _pid_namespace(first) or _pid_namespace(first) == _pid_namespace("self"):
        raise ProcessLookupError(f"process {pid} does not belong to the container")
    library = libc.library()
    os.setgroups([])
    if Path(f"/proc/self/fd/{users}").readlink() != Path("/proc/self/ns/user").readlink():
        libc.must(library.setns(users, _NEW_USER), "its user namespace")
    libc.must(library.setns(mounts, _NEW_MOUNTS), "its mount namespace")
    os.fchdir(root)  # paths in its mountinfo start there
    os.chroot(".")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    low, high = bounding & 0xFFFFFFFF, bounding >> 32
    sets = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable; then their upper halves
    libc.must(library.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), sets), "its capabilities")
    for each in (mounts, users, root):
        os.close(each)
    os.umask(0o22)


def _pid_namespace(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/ns/pid").readlink()


def _bounding(pid: int) -> int:
    """The capability bounding set of a process: what it and its children may have."""
    return int(Path(f"/proc/{pid}/status").read_bytes().partition(b"\nCapBnd:")[2].split()[0], 16)
