# SPDX-License-Identifier: GPL-2.0-or-later
"""Of a dump: the UNIX sockets that are bound to a path, and whether CRIU would come to them by it; see `socket_names`.

It is looked at in the frozen container itself, whose disk and mounts are what the destination will have, before that
gets to know that it may restore. The destination could not tell: which socket a name had led to only the kernel knows
in which it was bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from migrator.criu.image_messages import FILES, FILES_LIMIT, FILES_MAGIC, number, once, records, signed, string
from migrator.criu.socket_names import AsksServer, Astray, Patience, View, Way, follow, superuser
from migrator.host import roots
from migrator.host.mountinfo import parse_mountinfo
from migrator.host.proc import link
from migrator.host.roots import Root

OLD_SOCKETS = "unixsk.img"
LIMIT = 5.0  # seconds for a look into another mount namespace, which waits for nobody
_UNIX = 16  # of file_entry in images/fdinfo.proto
_KIND, _A_UNIX_SOCKET = b"\x08", 5  # the field `type`, which protobuf-c writes first, and UNIXSK for it
_INODE, _TYPE, _STATE, _NAME, _FOLDER, _DELETED, _MOUNT = 2, 3, 4, 11, 14, 15, 17  # of unix_sk_entry in sk-unix.proto
_DATAGRAMS, _ESTABLISHED = 2, 1  # SOCK_DGRAM, TCP_ESTABLISHED
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_SIOCUNIXFILE = 0x89E0  # linux/un.h, kernel 4.10


class Bound(NamedTuple):
    """A socket by which CRIU takes a path."""

    inode: int
    name: str
    mount: int  # that its file is on, -1 where CRIU could not tell
    deleted: bool
    connected: bool  # it may have its name of the one that it was accepted by; CRIU does not bind it anew
    start: str = ""  # the folder that a relative name begins in, where CRIU binds it; it never makes that one again


class File(NamedTuple):
    """What was made when a socket was bound."""

    itself: Root
    folder: str  # that it is in, or was when it was deleted, from the root of its mount namespace


def require_here(images: Path, init: int, pids: Iterable[int]) -> None:
    """Raise PermissionError where CRIU would be led astray. `init` is the container's first process, `pids` are all.

    Raises OSError, and ValueError where the images make no sense.
    """
    sockets = bound(images)
    if not sockets:
        return
    pids = list(pids)
    files = bound_to({each.inode for each in sockets}, pids)
    again = {files[each.inode].itself for each in sockets
             if each.inode in files and not (each.deleted or each.connected)}
    root = superuser(Path(f"/proc/{init}/uid_map").read_text())
    with contextlib.ExitStack() as stack:
        views = [_view(stack, os.open(f"/proc/{init}/root", os.O_PATH),
                       os.fsdecode(Path(f"/proc/{init}/mountinfo").read_bytes()), root)]
        others = _others(stack, init, pids, root)
        patience = Patience()
        ways: dict[tuple[int, str, str], Way | str] = {}  # of many sockets that were accepted by one
        for each in sockets:
            view, key = _of(each.mount, views, others), (each.mount, each.name, each.start)
            if view is None:
                if each.connected:  # CRIU, too, finds no such mount, and need not go by the name
                    continue
                raise PermissionError(refused(each, "is in a mount namespace that cannot be found"))
            if key not in ways:
                ways[key] = _way(view, each, patience)
            if trouble := why_not(each, ways[key], files.get(each.inode), again):
                raise PermissionError(refused(each, trouble))


def refused(socket: Bound, trouble: str) -> str:
    return f"{socket.name}, to which a UNIX socket is bound, {trouble}"


def _way(view: View, socket: Bound, patience: Patience) -> Way | str:
    """Where its name leads, or why it must not be followed; raises OSError."""
    try:
        if socket.start and not follow(view, socket.start, patience, socket.mount).is_folder:
            return f"begins in {socket.start}, which is gone"
        return follow(view, socket.name, patience, socket.mount)
    except (Astray, AsksServer) as error:
        return str(error)


def why_not(socket: Bound, way: Way | str, file: File | None, again: Collection[Root]) -> str:
    """Why CRIU must not go by a socket's name, which leads that `way`; "" where it may.

    `again` has the files of all that are made anew. For what is deleted, or connected, CRIU removes the socket that is
    there, or the link to it. What is deleted it then makes, and takes away again, and calls what is there otherwise
    meanwhile: of a folder there another name could lead into another one for so long.

    The text is that of who has bound it, who may have had another root (chroot(2)), and have been a user in a user
    namespace of his own. Where it does not lead to the very socket it must at least lead to the folder of that, where
    somebody could make it: a socket that was renamed there CRIU makes by its old name.
    """
    if isinstance(way, str):
        return way
    if file is None:
        return "belongs to no socket that a process has open"
    is_it = way.is_socket and way.place == file.itself
    if is_it and not (way.by_users and way.by_link):
        return ""
    if way.by_users or way.by_link:
        whose = " of a user's" if way.by_users else ""
        return f"now leads through a symbolic link{whose} to something else"
    if way.folder != file.folder:
        return f"leads to {way.folder}, and is in {file.folder}"
    if way.place is None:
        return ""
    if socket.connected:
        return "" if way.place in again or not way.is_socket else "now leads to another socket"
    return "" if socket.deleted and way.place in again else "now leads to something else"


def bound_to(sockets: Collection[int], pids: Iterable[int]) -> dict[int, File]:
    """What was made when these sockets (inodes) were bound, of those that these processes have open."""
    found: dict[int, File] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            process = os.pidfd_open(pid)
            try:
                for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 -- many
                    target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115 -- it is no path
                    if not target.startswith("socket:["):
                        continue
                    inode = int(target[len("socket:["):-1])
                    if inode in sockets and inode not in found and (file := _bound_to(process, int(name))):
                        found[inode] = file
            finally:
                os.close(process)
    return found


def _bound_to(process: int, number: int) -> File | None:
    """The same of a socket in another process; None where it is bound to no path. Raises OSError.

    By itself, as many files can have one number: each subvolume of btrfs counts for itself.
    """
    its = roots.take(process, number)
    try:
        file = fcntl.ioctl(its, _SIOCUNIXFILE)
    except FileNotFoundError:
        return None
    finally:
        os.close(its)
    try:
        path = Path(f"/proc/self/fd/{file}")
        return File(roots.at(path), str(path.readlink().parent))
    finally:
        os.close(file)


def bound(images: Path) -> list[Bound]:
    """All of a dump's; raises OSError, and ValueError where the images make no sense."""
    if (images / OLD_SOCKETS).exists():
        raise ValueError(f"{OLD_SOCKETS} is from no current CRIU")
    found = []
    for record in records(images / FILES, FILES_MAGIC, FILES_LIMIT):
        if record.startswith(_KIND) and record[1:2] != bytes([_A_UNIX_SOCKET]):
            continue  # most are something else, and a container stands still
        its = once(record, (_UNIX,)).get(_UNIX)
        if its is None:
            continue
        entry = once(string(its), (_INODE, _TYPE, _STATE, _NAME, _FOLDER, _DELETED, _MOUNT))
        name = os.fsdecode(string(entry.get(_NAME)).partition(b"\0")[0])
        if not name:  # it has none, or one that is no path (unix(7), "abstract")
            continue
        connected = number(entry.get(_STATE)) == _ESTABLISHED and number(entry.get(_TYPE)) != _DATAGRAMS
        start = ""
        if not name.startswith("/"):
            start = os.fsdecode(string(entry.get(_FOLDER)))
            name = f"{start}/{name}"
        found.append(Bound(number(entry.get(_INODE)), name, signed(entry.get(_MOUNT)), bool(entry.get(_DELETED)),
                           connected, "" if connected else start))
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


def _others(stack: contextlib.ExitStack, init: int, pids: Iterable[int], root: int) -> Iterator[View]:
    """The other mount namespaces of these processes; what has ended has none."""
    seen = {"", link(f"/proc/{init}/ns/mnt")}
    for pid in pids:
        namespace = link(f"/proc/{pid}/ns/mnt")
        if namespace not in seen:
            seen.add(namespace)
            yield _view(stack, *_from_the_top(pid), root)


def _view(stack: contextlib.ExitStack, folder: int, mountinfo: str, root: int) -> View:
    stack.callback(os.close, folder)
    return View.of(folder, parse_mountinfo(mountinfo), root)


def _from_the_top(pid: int) -> tuple[int, str]:
    """The root of a process's mount namespace, which need not be that of the process, and all that is mounted there.

    By a thread that enters it; the rest of the program stays where it is. Raises OSError.
    """
    found: list[tuple[int, str]] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            proc, namespace = (os.open(path, os.O_RDONLY) for path in ("/proc", f"/proc/{pid}/ns/mnt"))
            try:
                for failed in (roots.libc().unshare(_CLONE_FS), roots.libc().setns(namespace, _CLONE_NEWNS)):
                    if failed:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                mountinfo = os.open("thread-self/mountinfo", os.O_RDONLY, dir_fd=proc)
                with os.fdopen(mountinfo, "rb") as file:
                    text = os.fsdecode(file.read())
                found.append((os.open("/", os.O_PATH), text))
            finally:
                os.close(proc)
                os.close(namespace)

    thread = threading.Thread(target=work, name="mount-namespace", daemon=True)
    thread.start()
    thread.join(LIMIT)
    if not found:
        raise PermissionError(f"the mount namespace of process {pid} cannot be examined")
    return found[0]
