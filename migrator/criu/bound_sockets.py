# SPDX-License-Identifier: GPL-2.0-or-later
"""At a dump: the UNIX sockets bound to a path, and whether that path would lead CRIU to them; see `socket_names`.

This is checked in the frozen container itself, whose disk and mounts are what the destination will have, before the
destination learns that it may restore. The destination could not check it: only the kernel in which a socket was bound
knows to which socket a name led.
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
from migrator.host import mount_tables, roots
from migrator.host.mountinfo import parse_mountinfo
from migrator.host.proc import link
from migrator.host.roots import Root

OLD_SOCKETS = "unixsk.img"
LIMIT = 5.0  # seconds for a look into another mount namespace, which does no blocking I/O
_UNIX = 16  # of file_entry in images/fdinfo.proto
_KIND, _A_UNIX_SOCKET = b"\x08", 5  # the field `type`, which protobuf-c writes first, with the value UNIXSK
_INODE, _TYPE, _STATE, _NAME, _FOLDER, _DELETED, _MOUNT = 2, 3, 4, 11, 14, 15, 17  # of unix_sk_entry in sk-unix.proto
_DATAGRAMS, _ESTABLISHED = 2, 1  # SOCK_DGRAM, TCP_ESTABLISHED
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_SIOCUNIXFILE = 0x89E0  # linux/un.h, kernel 4.10


class Bound(NamedTuple):
    """A socket for which CRIU uses a path."""

    inode: int
    name: str
    mount: int  # that its file is on; -1 if CRIU could not determine it
    deleted: bool
    connected: bool  # its name may be that of the listener that accepted it; CRIU does not bind it again
    start: str = ""  # the directory that a relative name starts from, if CRIU binds it; CRIU never creates that one


class File(NamedTuple):
    """The file created when a socket was bound."""

    itself: Root
    folder: str  # the directory it is in, or was in when deleted, relative to the root of its mount namespace


def require_here(images: Path, init: int, pids: Iterable[int]) -> None:
    """Raise PermissionError if CRIU would be led astray. `init` is the container's PID 1, `pids` are all its processes.

    Raises OSError, and ValueError if the images make no sense or more is mounted than is read.
    """
    sockets = bound(images)
    if not sockets:
        return
    pids = list(pids)
    files = bound_to({each.inode for each in sockets}, pids)
    again = {files[each.inode].itself for each in sockets
             if each.inode in files and not (each.deleted or each.connected)}
    root = superuser(Path(f"/proc/{init}/uid_map").read_text())
    tables = mount_tables.MountTables()
    with contextlib.ExitStack() as stack:
        first = _view(stack, os.open(f"/proc/{init}/root", os.O_PATH), tables.read(f"/proc/{init}/mountinfo"), root)
        views = dict.fromkeys([-1, *first.mounts], first)
        others = _others(stack, init, pids, root, tables)
        patience = Patience()
        ways: dict[tuple[int, str, str], Way | str] = {}  # many sockets may have been accepted by one listener
        for each in sockets:
            view, key = _of(each.mount, views, others), (each.mount, each.name, each.start)
            if view is None:
                if each.connected:  # CRIU does not find such a mount either, and does not need the name
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
    """Why CRIU must not use a socket's name, which leads that `way`; "" if it may.

    `again` has the files of all sockets that are created anew. For a deleted or connected socket, CRIU removes the
    socket or symlink that is there. A deleted socket it then creates and removes again, and meanwhile renames whatever
    else is there: if that is a directory, another name could lead into a different one for that time.

    The name is the text given by the process that bound it, which may have had a different root (chroot(2)) and been a
    user in a user namespace of its own. If it does not lead to the very socket, it must at least lead to the directory
    of that socket, where someone could create it: CRIU creates a socket that was renamed there under its old name.
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
    """The files created when these sockets (inodes) were bound, for those that these processes have open."""
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
    """As `bound_to`, for one socket in another process; None if it is bound to no path. Raises OSError.

    Done one by one, because many files can share one inode number: each btrfs subvolume numbers its own.
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
    """All such sockets of a dump; raises OSError, and ValueError if the images make no sense."""
    if (images / OLD_SOCKETS).exists():
        raise ValueError(f"{OLD_SOCKETS} is from no current CRIU")
    found = []
    for record in records(images / FILES, FILES_MAGIC, FILES_LIMIT):
        if record.startswith(_KIND) and record[1:2] != bytes([_A_UNIX_SOCKET]):
            continue  # most files are of another kind, and a container is frozen
        its = once(record, (_UNIX,)).get(_UNIX)
        if its is None:
            continue
        entry = once(string(its), (_INODE, _TYPE, _STATE, _NAME, _FOLDER, _DELETED, _MOUNT))
        name = os.fsdecode(string(entry.get(_NAME)).partition(b"\0")[0])
        if not name:  # it has none, or one that is not a path (unix(7), "abstract")
            continue
        connected = number(entry.get(_STATE)) == _ESTABLISHED and number(entry.get(_TYPE)) != _DATAGRAMS
        start = ""
        if not name.startswith("/"):
            start = os.fsdecode(string(entry.get(_FOLDER)))
            name = f"{start}/{name}"
        found.append(Bound(number(entry.get(_INODE)), name, signed(entry.get(_MOUNT)), bool(entry.get(_DELETED)),
                           connected, "" if connected else start))
    return found


def _of(mount: int, views: dict[int, View], others: Iterator[View]) -> View | None:
    """The mount namespace that a mount is in. `views` has those seen so far, by mount: there may be many of either."""
    while mount not in views:
        view = next(others, None)
        if view is None:
            return None
        views.update(dict.fromkeys(view.mounts, view))
    return views[mount]


def _others(stack: contextlib.ExitStack, init: int, pids: Iterable[int], root: int,
            tables: mount_tables.MountTables) -> Iterator[View]:
    """The other mount namespaces of these processes; a process that has ended has none."""
    seen = {"", link(f"/proc/{init}/ns/mnt")}
    for pid in pids:
        namespace = link(f"/proc/{pid}/ns/mnt")
        if namespace not in seen:
            seen.add(namespace)
            yield _view(stack, *_from_the_top(pid, tables), root)


def _view(stack: contextlib.ExitStack, folder: int, mountinfo: str, root: int) -> View:
    stack.callback(os.close, folder)
    return View.of(folder, parse_mountinfo(mountinfo), root)


def _from_the_top(pid: int, tables: mount_tables.MountTables) -> tuple[int, str]:
    """The root of a process's mount namespace, which may differ from that of the process, and everything mounted there.

    A thread enters the namespace; the rest of the program stays where it is. Raises OSError and
    TooManyMounts.
    """
    found: list[tuple[int, str]] = []
    too_many: list[mount_tables.TooManyMounts] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            proc, namespace = (os.open(path, os.O_RDONLY) for path in ("/proc", f"/proc/{pid}/ns/mnt"))
            try:
                for failed in (roots.libc().unshare(_CLONE_FS), roots.libc().setns(namespace, _CLONE_NEWNS)):
                    if failed:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                text = tables.read(os.open("thread-self/mountinfo", os.O_RDONLY, dir_fd=proc))
                found.append((os.open("/", os.O_PATH), text))
            except mount_tables.TooManyMounts as error:
                too_many.append(error)
            finally:
                os.close(proc)
                os.close(namespace)

    thread = threading.Thread(target=work, name="mount-namespace", daemon=True)
    thread.start()
    thread.join(LIMIT)
    if too_many:
        raise too_many[0]
    if not found:
        raise PermissionError(f"the mount namespace of process {pid} cannot be examined")
    return found[0]
