# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the name of a UNIX socket leads in a container.

CRIU keeps the name that was given to bind(2). At a restore it removes the socket that it finds by that name, binds the
new one there, sets its owner and mode, and connects others to it (unlink_sk, bind_unix_sk and post_open_standalone in
criu/sk-unix.c), always with root's privileges, and with the container's root directory as its own. So it follows
symbolic links to wherever they lead by then, and any user of the container can have put one in the place of a directory
of theirs: leading to a socket that only the container's root may connect to, or, through links in /proc, out of the
container. There, `/proc/self/fd/N` leads to what CRIU itself has open, including this host's own /proc.

For a deleted socket it also creates missing directories (bind_on_deleted), but not the one that a relative name begins
in, which it enters first (prep_unix_sk_cwd).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from migrator.host import roots
from migrator.host.mountinfo import SERVERLESS, MountLine
from migrator.host.roots import Root

LINKS_MAX = 40  # on one way; path_resolution(7)
WORDS_MAX = 300_000  # of all names together, while a container is frozen: a few seconds
ANYBODY = -1  # not a user id


class View(NamedTuple):
    """What a process sees in a mount namespace."""

    root: int  # a descriptor
    mounts: dict[int, MountLine]
    roots: frozenset[int]  # the uids, as seen from here, whose links may lead anywhere

    @classmethod
    def of(cls, root: int, mounts: Iterable[MountLine], superuser: int) -> View:
        """`superuser` is root's uid in there; this host's root may be nobody in there."""
        return cls(root, {line.id: line for line in mounts}, frozenset([superuser, 0]))


class Way(NamedTuple):
    """Where a name leads."""

    folder: str  # the directory of the last component, without a symlink on the way
    place: Root | None  # None if nothing is there
    is_socket: bool = False
    by_users: bool = False  # through a symlink that is not root's, or is in a directory that is not
    by_link: bool = False  # the last component is a symlink
    is_folder: bool = False
    owner: int = ANYBODY
    # `movers_of` all directories on the way but the root, and of the target if it is one.
    movers: frozenset[int] = frozenset()


class Astray(PermissionError):
    """A name leads to where CRIU must not follow it; how is its text."""


class AsksServer(PermissionError):
    """A name leads to a mount that asks a server, which may never answer; how is its text."""


class Patience:
    """How many components may be walked for all names together: each name can have many, through its symlinks."""

    def __init__(self, words: int = WORDS_MAX) -> None:
        self._left = words

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Astray("is one of too many, or leads through too many folders")


def follow(view: View, name: str, patience: Patience, own: int = -1) -> Way:
    """Where a name leads; on the mount with the number `own` a server may be asked.

    Raises Astray, AsksServer, and OSError.
    """
    here = [os.dup(view.root)]  # each directory on the way, for ".."
    path: list[str] = []  # and its name
    words, links, gone, by_users, by_link = _words(name), 0, False, False, False
    movers: set[int] = set()
    try:
        while words:
            patience.take()
            word = words.pop()
            if gone:  # CRIU creates these directories, if any, and goes on from them
                if word == "..":
                    raise Astray("leads upwards from a folder that is gone")
                path.append(word)
                continue
            if word == "..":
                if path:
                    os.close(here.pop())
                    path.pop()
                continue
            path.append(word)
            try:
                here.append(os.open(word, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here[-1]))
            except (FileNotFoundError, NotADirectoryError):
                gone = True
                continue
            _place(here[-1], view, own)
            found = os.fstat(here[-1])
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise Astray("leads through too many symbolic links")
                by_users |= not {found.st_uid, os.fstat(here[-2]).st_uid} <= view.roots
                by_link |= not words
                target = os.readlink("", dir_fd=here[-1])
                for _ in range(len(path) if target.startswith("/") else 1):
                    os.close(here.pop())
                    path.pop()
                words += _words(target)
            elif stat.S_ISDIR(found.st_mode):
                movers |= movers_of(found)
            elif words:
                gone = True
        folder = f"/{'/'.join(path[:-1])}"
        if gone:
            return Way(folder, None, by_users=by_users, by_link=by_link, movers=frozenset(movers))
        place = _place(here[-1], view, own)
        found = os.fstat(here[-1])
        return Way(folder, place, stat.S_ISSOCK(found.st_mode), by_users, by_link, stat.S_ISDIR(found.st_mode),
                   found.st_uid, frozenset(movers))
    finally:
        for fd in here:
            os.close(fd)


def movers_of(folder: os.stat_result) -> frozenset[int]:
    """The uids, as seen from here, of those who can rename what is in a directory and put a symlink in its place.

    Its owner, and ANYBODY if the group or others may write to it, sticky or not; an access control list shows up in the
    group's bits.
    """
    return frozenset([folder.st_uid, ANYBODY] if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else [folder.st_uid])


def superuser(uid_map: str) -> int:
    """Root's uid in a user namespace, according to its map (user_namespaces(7)); this host's if the map has none."""
    for line in uid_map.splitlines():
        inside, outside, _count = map(int, line.split())
        if inside == 0:
            return outside
    return 0


def _words(name: str) -> list[str]:
    """The components of a path, last one first."""
    return [word for word in reversed(name.split("/")) if word not in ("", ".")]


def _place(fd: int, view: View, own: int) -> Root:
    """Identifies a file, as the kernel can without asking its file system; raises Astray and AsksServer by its mount.
    """
    found, number = roots.placed(Path(f"/proc/self/fd/{fd}"))
    mount = None if number is None else view.mounts.get(number)
    if mount is None:
        raise Astray("leads to an unknown mount")
    if mount.type == "proc":
        raise Astray("leads through /proc, where CRIU would find what it has open itself")
    if mount.type not in SERVERLESS and number != own:
        raise AsksServer(f"leads through a mount of type {mount.type}, which may never answer")
    return found
