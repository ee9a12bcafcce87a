# SPDX-License-Identifier: GPL-2.0-or-later
"""What may not be done on a container's mounts: looked at when it is dumped, seen to again when it is restored.

CRIU takes what is bound from the host from the host anew, and does not always give it the flags that it had: where the
container has two such mounts of one file system, it takes the second for a copy of the first, whose flags it would
have already (do_bind_mount_v2 in criu/mount-v2.c). So /lib of lxc-create's busybox container, read-only before, came
back writable: to the container's root the host's own /lib.

`at_restore` imports it while a container stands still.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD = "mount-flags"  # the file that travels beside the images
RECORD_LIMIT = 16 << 20  # bytes
# Words of /proc/PID/mountinfo, flags of mount(2) (linux/mount.h).
FORBID = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 256}
KEEP = {"noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
REMOUNT = 32 | 4096  # MS_REMOUNT | MS_BIND: of this mount, not of its file system
_CLONE_NEWNS = 0x20000


def record(pids: Iterable[int]) -> str:
    """What is forbidden on the mounts of the container's processes, in each mount namespace that one of them is in.

    A line `PID FLAGS TARGET` for each mount that forbids anything: a process by its id in the container, the words and
    the target as in its mountinfo (proc_pid_mountinfo(5)).
    """
    lines = []
    seen = set()
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                inside = _inside(pid)
                lines += [f"{inside} {','.join(sorted(forbidden))} {target}\n"
                          for target, (forbidden, _) in mounts(_read(f"/proc/{pid}/mountinfo")).items() if forbidden]
                seen.add(namespace)
        except (FileNotFoundError, ProcessLookupError):  # a zombie, which has none
            continue
    return "".join(lines)


def mounts(mountinfo: str) -> dict[str, tuple[set[str], set[str]]]:
    """Of each target the words in FORBID and those in KEEP of what is mounted there, on top."""
    found = {}
    for line in filter(None, mountinfo.split("\n")):  # a container may put any other line's end into a target
        target, words = line.split(" ")[4:6]
        found[target] = set(words.split(",")) & FORBID.keys(), set(words.split(",")) & KEEP.keys()
    return found


def missing(recorded: dict[str, set[str]], mountinfo: str) -> dict[str, int]:
    """The flags for a remount of each target that allows what it did not allow before."""
    found = {}
    for target, (forbidden, kept) in mounts(mountinfo).items():
        if wanted := recorded.get(target, set()) - forbidden:
            found[target] = sum(FORBID[word] for word in wanted | forbidden) | sum(KEEP[word] for word in kept)
    return found


def tighten(text: str, pids: Iterable[int]) -> None:
    """Forbid on the mounts of a container, whose processes are `pids`, what a record says; raises OSError."""
    recorded: dict[int, dict[str, set[str]]] = {}
    for line in filter(None, text.split("\n")):
        inside, words, target = line.split(" ")
        recorded.setdefault(int(inside), {})[target] = set(words.split(",")) & FORBID.keys()
    for pid in pids:
        if recorded and (wanted := recorded.pop(_inside(pid), None)) is not None:
            if found := missing(wanted, _read(f"/proc/{pid}/mountinfo")):
                _remount(pid, found)
            if left := missing(wanted, _read(f"/proc/{pid}/mountinfo")):
                raise OSError(f"{', '.join(left)} could not be mounted as before")


def _remount(pid: int, found: dict[str, int]) -> None:
    """In the mount namespace of a process; ours is left for it and entered again."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def must(status: int, what: str) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    here, there = (os.open(f"/proc/{each}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) for each in ("self", pid))
    try:
        must(libc.setns(there, _CLONE_NEWNS), f"the mount namespace of process {pid}")
        for target, flags in found.items():
            must(libc.mount(None, _unescape(target), None, ctypes.c_ulong(REMOUNT | flags), None), target)
    finally:
        must(libc.setns(here, _CLONE_NEWNS), "our own mount namespace")
        os.close(here)
        os.close(there)


def _unescape(target: str) -> bytes:
    """A target of mountinfo, where space, tab, newline and backslash are written in octal."""
    first, *rest = os.fsencode(target).split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _inside(pid: int) -> int:
    """A process's id in its own PID namespace."""
    return int(_read(f"/proc/{pid}/status").rpartition("\nNSpid:")[2].partition("\n")[0].split()[-1])


def _read(path: str) -> str:
    with open(path, errors="surrogateescape", newline="\n") as file:
        return file.read()
