# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes of a container that stand still wait for by epoll(7), and adding it again.

`pressure_triggers` imports this module while the container stands still, so it imports little itself.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    Entry = tuple[int, tuple[int, int]]  # an epoll instance, by its descriptor there; the events and the data

_CTL_ADD, _CTL_DEL = 1, 2  # sys/epoll.h
PROC = "/proc"


def read(pid: int, fds: Collection[int]) -> dict[int, list[Entry]]:
    """For each of these descriptors the epoll instances that it is added to. Raises OSError.

    Nothing is kept of others: a process can wait for millions.
    """
    found: dict[int, list[Entry]] = {}
    for name in os.listdir(f"{PROC}/{pid}/fd"):
        try:
            if os.readlink(f"{PROC}/{pid}/fd/{name}") != "anon_inode:[eventpoll]":
                continue
        except FileNotFoundError:  # closed meanwhile
            continue
        with open(f"{PROC}/{pid}/fdinfo/{name}", "rb") as lines:
            for line in lines:
                words = line.split()
                if words[:1] == [b"tfd:"] and int(words[1]) in fds:
                    found.setdefault(int(words[1]), []).append((int(name), (int(words[3], 16), int(words[5], 16))))
    return found


def add_again(pid: int, fd: int, file: int, entry: Entry) -> None:
    """Remove `fd` from an epoll instance of its process and add it again; `file` is a duplicate of it here.

    epoll(7) identifies an entry by open file and descriptor number together, so for a moment the file must have that
    number in this process too. Nothing is done if the entry is of another file, which had that number before. Raises
    OSError, with the entry removed or not.
    """
    import contextlib
    import ctypes
    import struct

    from migrator.host import roots

    libc = ctypes.CDLL(None, use_errno=True)
    epoll, events_and_data = entry
    # struct epoll_event (epoll_event(3type)) is packed on x86-64 only.
    event = struct.pack("=IQ" if os.uname().machine == "x86_64" else "@IQ", *events_and_data)
    _allow(fd)
    with contextlib.ExitStack() as stack:
        held = _other_than(fd, roots.borrowed(pid, epoll))
        stack.callback(os.close, held)
        mine = _other_than(fd, os.dup(file))
        stack.callback(os.close, mine)
        try:
            before = os.dup(fd)
        except OSError:  # it is none of ours
            stack.callback(os.close, fd)
        else:
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, fd, inheritable=False)
        os.dup2(mine, fd, inheritable=False)
        for action in (_CTL_DEL, _CTL_ADD):
            if libc.epoll_ctl(held, action, fd, event):
                if action == _CTL_DEL and ctypes.get_errno() == errno.ENOENT:
                    break
                raise OSError(ctypes.get_errno(), f"epoll_ctl of process {pid}: {os.strerror(ctypes.get_errno())}")


def _allow(number: int) -> None:
    """Let this program have a descriptor of this number, as a login's limit is 1024, and systemd's own half a million.

    Raises OSError.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number >= soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number + 1, max(hard, number + 1)))
        except ValueError as error:  # no privilege, or more than fs.nr_open
            raise OSError(errno.EMFILE, f"there can be no descriptor {number} here: {error}") from error


def _other_than(number: int, fd: int) -> int:
    """The descriptor `fd`, or if it has this number, a duplicate that replaces it; raises OSError."""
    if fd != number:
        return fd
    other = os.dup(fd)
    os.close(fd)
    return other
