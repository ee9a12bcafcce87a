# SPDX-License-Identifier: GPL-2.0-or-later
"""Of a dump: the UNIX sockets that are bound to a path, and whether CRIU would come to them by it; see `socket_names`.

It is looked at in the frozen container itself, whose disk and mounts are what the destination will have, before that
gets to know that it may restore. The destination could not tell: which socket a name had led to only the kernel knows
in which it was bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from migrator import roots
from migrator.criu_image import FILES, FILES_LIMIT, FILES_MAGIC, number, once, records, signed, string
from migrator.preflight import net_facts, unix_facts
from migrator.preflight.mount_facts import parse_mountinfo
from migrator.preflight.proc import link
from migrator.socket_names import AsksServer, Astray, Place, follow

OLD_SOCKETS = "unixsk.img"
LIMIT = 5.0  # seconds for a look into another mount namespace, which waits for nobody
_UNIX = 16  # of file_entry in images/fdinfo.proto
_INODE, _NAME, _FOLDER, _DELETED, _MOUNT = 2, 11, 14, 15, 17  # of unix_sk_entry in images/sk-unix.proto
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000


class Bound(NamedTuple):
    """A socket by which CRIU takes a path."""

    inode: int
    name: str
    mount: int  # that its file is on, -1 where CRIU could not tell
    deleted: bool


class View(NamedTuple):
    """A mount namespace: its root, as a descriptor, and the type of each mount in it."""

    root: int
    mounts: dict[int, str]


def require_here(images: Path, init: int, pids: Iterable[int]) -> None:
    """Raise PermissionError where CRIU would be led astray. `init` is the container's first process, `pids` are all.

    Raises OSError, and ValueError where the images make no sense.
    """
    sockets = bound(images)
    if not sockets:
        return
    pids = list(pids)
    networks = net_facts.namespaces(init, pids)
    files = {inode: its.file for pid in networks for inode, its in unix_facts.bound(pid).items()}
    with contextlib.ExitStack() as stack:
        views = [_view(stack, os.open(f"/proc/{init}/root", os.O_PATH | os.O_CLOEXEC),
                       os.fsdecode(Path(f"/proc/{init}/mountinfo").read_bytes()))]
        others = _others(stack, init, pids)
        for each in sockets:
            if trouble := why_not(each, _of(each.mount, views, others), files.get(each.inode)):
                raise PermissionError(f"{each.name}, to which a UNIX socket is bound, {trouble}")


def why_not(socket: Bound, view: View | None, file: int | None) -> str:
    """Why CRIU must not go by a socket's name; "" where it may.

    `file` is the inode number of what was made when it was bound, None where that is not known. Raises OSError.
    """
    if view is None:
        return "is in a mount namespace that is not to be found"
    try:
        place = follow(view.root, socket.name, view.mounts, socket.mount)
    except (Astray, AsksServer) as error:
        return str(error)
    if place is None or socket.deleted or _is_it(place, socket, file):
        return ""
    return "leads to something else by now" if file is not None else "is of no socket that is known"


def _is_it(place: Place, socket: Bound, file: int | None) -> bool:
    return place.is_socket and socket.mount in (-1, place.mount) and place.inode & 0xFFFFFFFF == file


def bound(images: Path) -> list[Bound]:
    """All of a dump's; raises OSError, and ValueError where the images make no sense."""
    if (images / OLD_SOCKETS).exists():
        raise ValueError(f"{OLD_SOCKETS} is of no CRIU of today")
    found = []
    for record in records(images / FILES, FILES_MAGIC, FILES_LIMIT):
        its = once(record, (_UNIX,)).get(_UNIX)
        if its is None:
            continue
        entry = once(string(its), (_INODE, _NAME, _FOLDER, _DELETED, _MOUNT))
        name = os.fsdecode(string(entry.get(_NAME)).partition(b"\0")[0])
        if not name:  # it has none, or one that is no path (unix(7), "abstract")
            continue
        if not name.startswith("/"):
            name = f"{os.fsdecode(string(entry.get(_FOLDER)))}/{name}"
        found.append(Bound(number(entry.get(_INODE)), name, signed(entry.get(_MOUNT)), bool(entry.get(_DELETED))))
    return found


def _of(mount: int, views: list[View], others: Iterator[View]) -> View | None:
    """The mount namespace that a mount is in, by default the first one."""
    if mount == -1:
        return views[0]
    for view in views:
        if mount in view.mounts:
            return view
    for view in others:
        views.append(view)
        if mount in view.mounts:
            return view
    return None


def _others(stack: contextlib.ExitStack, init: int, pids: Iterable[int]) -> Iterator[View]:
    """The other mount namespaces of these processes; what has ended has none."""
    seen = {"", link(f"/proc/{init}/ns/mnt")}
    for pid in pids:
        namespace = link(f"/proc/{pid}/ns/mnt")
        if namespace not in seen:
            seen.add(namespace)
            yield _view(stack, *_from_the_top(pid))


def _view(stack: contextlib.ExitStack, root: int, mountinfo: str) -> View:
    stack.callback(os.close, root)
    return View(root, {line.id: line.type for line in parse_mountinfo(mountinfo)})


def _from_the_top(pid: int) -> tuple[int, str]:
    """The root of a process's mount namespace, which need not be that of the process, and all that is mounted there.

    By a thread that enters it; the rest of the program stays where it is. Raises OSError.
    """
    found: list[tuple[int, str]] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            proc, namespace = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc", f"/proc/{pid}/ns/mnt"))
            try:
                for failed in (roots.libc().unshare(_CLONE_FS), roots.libc().setns(namespace, _CLONE_NEWNS)):
                    if failed:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                mountinfo = os.open("thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
                with os.fdopen(mountinfo, "rb") as file:
                    text = os.fsdecode(file.read())
                found.append((os.open("/", os.O_PATH | os.O_CLOEXEC), text))
            finally:
                os.close(proc)
                os.close(namespace)

    thread = threading.Thread(target=work, name="mount-namespace", daemon=True)
    thread.start()
    thread.join(LIMIT)
    if not found:
        raise PermissionError(f"the mount namespace of process {pid} cannot be looked into")
    return found[0]
