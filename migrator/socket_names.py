# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the name of a UNIX socket leads in a container.

CRIU keeps the text that was given to bind(2). At a restore it removes the socket that it finds by that name, binds the
new one there, sets its owner and mode, and connects others to it (unlink_sk, bind_unix_sk and post_open_standalone in
criu/sk-unix.c), always with root's rights, and with the container's root as its own. So it follows symbolic links to
wherever they lead by then, and any user of the container can have put one in the place of a folder of his: to a socket
that only root of the container may connect to, or, by the links of /proc, out of the container. There
`/proc/self/fd/N` leads to what CRIU itself has open, this host's own /proc for one.

For a deleted socket it also makes the folders that are missing (bind_on_deleted).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from migrator import roots
from migrator.preflight.mount_facts import SERVERLESS

LINKS_MAX = 40  # on one way; path_resolution(7)


class Place(NamedTuple):
    """What a name leads to."""

    is_socket: bool
    inode: int
    mount: int


class Astray(PermissionError):
    """A name leads to where CRIU must not follow it; how is its text."""


class AsksServer(PermissionError):
    """A name leads to a mount that asks a server, which may never answer; how is its text."""


def follow(root: int, name: str, mounts: Mapping[int, str], own: int = -1) -> Place | None:
    """What a name leads to for a process that has the folder `root` as its root; None where nothing is there.

    `mounts` has the type of each mount there, by its number; on that of the number `own` a server may be asked.
    Raises Astray, AsksServer, and OSError.
    """
    here = [os.dup(root)]  # each folder on the way, for ".."
    words, links, gone = _words(name), 0, False
    try:
        while words:
            word = words.pop()
            if gone:  # CRIU makes these folders, if it makes any, and goes on from them
                if word == "..":
                    raise Astray("leads upwards from a folder that is gone")
                continue
            if word == "..":
                if len(here) > 1:
                    os.close(here.pop())
                continue
            try:
                here.append(os.open(word, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here[-1]))
            except (FileNotFoundError, NotADirectoryError):
                gone = True
                continue
            _require_harmless(here[-1], mounts, own)
            mode = os.fstat(here[-1]).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > LINKS_MAX:
                    raise Astray("leads over too many symbolic links")
                target = os.readlink("", dir_fd=here[-1])
                for _ in range(len(here) - 1 if target.startswith("/") else 1):
                    os.close(here.pop())
                words += _words(target)
            elif words and not stat.S_ISDIR(mode):
                gone = True
        return None if gone else _place(here[-1])
    finally:
        for fd in here:
            os.close(fd)


def _words(name: str) -> list[str]:
    """The words of a path, the last one ahead."""
    return [word for word in reversed(name.split("/")) if word not in ("", ".")]


def _require_harmless(fd: int, mounts: Mapping[int, str], own: int) -> None:
    """By the mount alone, which the kernel tells without asking there."""
    _, mount = roots.placed(_held(fd))
    kind = mounts.get(-1 if mount is None else mount)
    if kind is None:
        raise Astray("leads to a mount that is not known")
    if kind == "proc":
        raise Astray("leads through /proc, where CRIU would find what it has open itself")
    if kind not in SERVERLESS and mount != own:
        raise AsksServer(f"leads over a mount of the type {kind}, which may never answer")


def _place(fd: int) -> Place:
    root, mount = roots.placed(_held(fd))
    return Place(stat.S_ISSOCK(os.fstat(fd).st_mode), root.inode, -1 if mount is None else mount)


def _held(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")
