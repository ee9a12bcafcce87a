# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths in a container lead, whatever its users do, to where they lead now.

Some cures are commands on a path, to be typed as the container's root, and some of these paths a user of the container
has made, as of a mount or a subvolume of his own. Between the look and the command he can put a symbolic link in the
place of any folder that lies in one of his, and have root move, copy or unmount something else: /etc/passwd, say. So
such a command is advised only where nobody but root could do that (`Case.is_fixed`).
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

WORDS_MAX = 20_000  # some tenths of a second; of what comes behind nothing is told


def gather(init: int, mounts: Iterable[MountLine], names: Iterable[str], links: Iterable[str],
           subvolumes: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the paths that only root can make lead elsewhere, and the subvolumes with which only their owner can.

    Of `names` and `subvolumes` each folder on the way counts, and nothing else: what is mounted there may be a file
    server that never answers. A link leads on, and all of its way counts.
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
    """Who besides root could make a path lead elsewhere, with ANYBODY where that is not known; and whose it is."""
    with contextlib.suppress(OSError):
        socket_names.follow(view, "/", patience)  # that its root asks no server
        way = socket_names.follow(view, path, patience)
        if way.place:
            return (way.movers | socket_names.movers_of(os.fstat(view.root))) - view.roots, way.owner
    return frozenset([ANYBODY]), 0
