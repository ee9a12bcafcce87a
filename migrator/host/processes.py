# SPDX-License-Identifier: GPL-2.0-or-later
"""Which process of this host is which program, told so that nobody else's can pass for it.

What a process calls itself, its arguments and its environment are its own to choose, and any user of the host, or a
container's root, can choose ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from migrator.base import programs
from migrator.host import roots


def running(*called: str, owner: int | None = None, root: Path | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """The processes that are one of these programs (names as they are in $PATH), each with its arguments.

    Those of user id `owner` only, by default our own, which is root's. What a killed parent has left is among them, and
    what was forked without executing anything else (LXC's monitor is still `lxc-start` or `lxc-checkpoint`).

    In a mount namespace of its own a script, or what an upgrade has replaced, counts only if its root directory is
    `root`: a folder of ours in which no container can be.
    """
    files, names = programs.ids(called), {os.fsencode(name) for name in called}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _uid(folder) != (os.geteuid() if owner is None else owner):
                    continue
                executes = _executes(folder, files)
                if not executes and not _has_our_paths(folder, root):
                    continue  # its arguments lie in its memory, and a container's root can have us wait for them
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if executes or _is_named(folder, words, names):
                    yield int(folder.name), words


def _executes(folder: Path, files: set[tuple[int, int]]) -> bool:
    """By the file that it executes: no other file system has that one, nor does a container."""
    executed = roots.at(folder / "exe")  # which waits for no server that the file may be on
    return (executed.device, executed.inode) in files


def _has_our_paths(folder: Path, root: Path | None) -> bool:
    """Whether a path means the same file for the two of us: only in our own mount namespace, or where it has come out
    of that into a chroot of ours.
    """
    return ((folder / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
            or (root is not None and roots.of(int(folder.name)) == roots.at(root)))


def _is_named(folder: Path, words: list[bytes], names: set[bytes]) -> bool:
    """By its path, as a script goes, or a program whose file has been replaced by an upgrade meanwhile."""
    path = os.fsencode(os.readlink(folder / "exe")).removesuffix(b" (deleted)")  # noqa: PTH115
    return any(word.rpartition(b"/")[2] in names for word in (path, *words[:2]))


def _uid(folder: Path) -> int:
    """A process's real user id (proc_pid_status(5)); the owner of its files in /proc may be root for other reasons."""
    return int(status(int(folder.name), b"Uid")[0])


def status(pid: int, key: bytes) -> list[bytes]:
    """The words of a line of /proc/PID/status (proc_pid_status(5)); raises ProcessLookupError, FileNotFoundError.

    The first line is the name that the process has given itself: any bytes, but a newline is written as \\n. What else
    ends a line in some other place, as a carriage return does, ends none here.
    """
    for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
        found, _, words = line.partition(b":")
        if found == key:
            return words.split()
    raise ProcessLookupError(pid)
