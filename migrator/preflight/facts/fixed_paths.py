# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths in a container will lead, whatever its users do, to where they lead now.

Some cures are commands on a path, to be typed as the container's root, and some of these paths were made by a user of
the container: that of a mount or a subvolume of theirs, say. Between the check and the command, that user can replace
any directory that is inside one of theirs by a symlink, and so make root move, copy or unmount something else:
/etc/passwd, say. So such a command is only advised if nobody but root could do that (`Case.is_fixed`).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterable

from migrator.criu import socket_names
from migrator.criu.socket_names import ANYBODY, Patience, View
from migrator.host.mountinfo import MountLine
from migrator.host.proc import read_text

WORDS_MAX = 20_000  # a few tenths of a second; nothing is said about what comes after these


def gather(init: int, mounts: Iterable[MountLine], names: Iterable[str], links: Iterable[str],
           subvolumes: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the paths that only root can make lead elsewhere, and the subvolumes for which only their owner can.

    Of `names` and `subvolumes`, each directory on the way counts, and nothing else: what is mounted there may be a file
    server that never answers. A symlink is followed, and all of its way counts.
    """
    fixed, owned = [], []
    with contextlib.suppress(OSError):
        root = os.open(f"/proc/{init}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            view = View.of(root, mounts, socket_names.superuser(read_text(f"/proc/{init}/uid_map")))
            patience = Patience(WORDS_MAX)
            fixed += [path for path in names if not _users(view, posixpath.dirname(path), patience)[0]]
            fixed += [path for path in links if not _users(view, path, patience)[0]]
            for path in subvolumes:
                users, owner = _users(view, path, patience)
                if not _users(view, posixpath.dirname(path), patience)[0]:
                    fixed.append(path)
                elif users == {owner}:
                    owned.append(path)
        finally:
            os.close(root)
    return tuple(fixed), tuple(owned)


def _users(view: View, path: str, patience: Patience) -> tuple[frozenset[int], int]:
    """Who besides root could make a path lead elsewhere, including ANYBODY if that is unknown; and who owns it."""
    with contextlib.suppress(OSError):
        socket_names.follow(view, "/", patience)  # checks that its root asks no server
        way = socket_names.follow(view, path, patience)
        if way.place:
            return (way.movers | socket_names.movers_of(os.fstat(view.root))) - view.roots, way.owner
    return frozenset([ANYBODY]), 0
