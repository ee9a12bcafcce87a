# SPDX-License-Identifier: GPL-2.0-or-later
"""Which process of this host runs which program, determined so that nobody else's process can pass for it.

A process chooses its name, its arguments and its environment itself, and any user of the host, or a container's root,
can choose ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from migrator.base import programs
from migrator.host import roots


def running(*called: str, owner: int | None = None, root: Path | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """The processes that run one of these programs (named as in $PATH), each with its arguments.

    Only those of uid `owner`, by default our own, which is root's. That includes what a killed parent has left behind,
    and what was forked without an exec (LXC's monitor is still `lxc-start` or `lxc-checkpoint`).

    In a mount namespace of its own, a script, or a program replaced by an upgrade, counts only if its root directory is
    `root`: a directory of ours in which no container can be.
    """
    files, names = programs.ids(called), {os.fsencode(name) for name in called}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _uid(folder) != (os.geteuid() if owner is None else owner):
                    continue
                executes = _executes(folder, files)
                if not executes and not _has_our_paths(folder, root):
                    continue  # its arguments are in its own memory, and a container's root can make us wait for them
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if executes or _is_named(folder, words, names):
                    yield int(folder.name), words


def _executes(folder: Path, files: set[tuple[int, int]]) -> bool:
    """Whether it executes one of these files: no other file system has the same one, nor does a container."""
    executed = roots.at(folder / "exe")  # this waits for no server that the file may be on
    return (executed.device, executed.inode) in files


def _has_our_paths(folder: Path, root: Path | None) -> bool:
    """Whether a path means the same file for both of us.

    That is so only in our own mount namespace, or if it has gone from there into a chroot of ours.
    """
    return ((folder / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
            or (root is not None and roots.of(int(folder.name)) == roots.at(root)))


def _is_named(folder: Path, words: list[bytes], names: set[bytes]) -> bool:
    """Whether it is one by its path, as for a script, or a program whose file an upgrade has replaced meanwhile."""
    path = os.fsencode(os.readlink(folder / "exe")).removesuffix(b" (deleted)")  # noqa: PTH115
    return any(word.rpartition(b"/")[2] in names for word in (path, *words[:2]))


def _uid(folder: Path) -> int:
    """A process's real uid (proc_pid_status(5)); the owner of its files in /proc may be root for other reasons."""
    return int(status(int(folder.name), b"Uid")[0])


def status(pid: int, key: bytes) -> list[bytes]:
    """The words of a line of /proc/PID/status (proc_pid_status(5)); raises ProcessLookupError, FileNotFoundError.

    The first line is the name that the process has given itself: any bytes, but a newline is written as an escape. What
    separates lines elsewhere, such as a carriage return, does not do so here.
    """
    for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
        found, _, words = line.partition(b":")
        if found == key:
            return words.split()
    raise ProcessLookupError(pid)
