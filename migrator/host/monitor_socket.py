# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for a container: liblxc asks a socket that is named after it, and any user of the host may bind one.

A container's monitor listens on an abstract socket (unix(7)), which has no owner and no mode, and goes by the LXC path
and the container's name. liblxc believes whoever holds it: that it runs, and which process is its first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
from pathlib import Path

from migrator.base import bounded_ask, log, names
from migrator.errors.this_host import CommandTimeout
from migrator.host import roots
from migrator.host.processes import status

ROOT = 0
LIMIT = 10  # whole seconds; a monitor takes connections as long as its queue has room, be it stopped
_ROOM = 106  # bytes for a name, of the 108 in sockaddr_un
_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group

# LXC paths of other containers: nothing may stand still for their sake for good.
_paths = bounded_ask.Asking(always=True)


def address(name: str, lxcpath: Path) -> bytes:
    """The socket's address: LXCPATH/NAME/command, or where that is too long a hash of it.

    As lxc_make_abstract_socket_name in liblxc's commands_utils.c has it.
    """
    place = os.fsencode(f"{lxcpath}/{name}")
    full = place + b"/command"
    if len(full) >= _ROOM:
        full = b"lxc/%016x/command" % _fnv_1a(place)
    return b"\0" + full


def _fnv_1a(data: bytes) -> int:
    """The hash FNV-1a of 64 bits."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 % (1 << 64)
    return found


def holder(name: str, lxcpath: Path) -> tuple[int, int] | None:
    """The process and the user that listen there (SO_PEERCRED in unix(7)), None where nobody does.

    They are those of when it began to listen. Raises CommandTimeout where it takes no connection.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        # Not by settimeout(): without blocking, a full queue is a failure at once.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", LIMIT, 0))
        try:
            client.connect(address(name, lxcpath))
        except ConnectionRefusedError:
            return None
        except BlockingIOError as error:
            raise CommandTimeout(command=f"A connection to LXC's monitor of {name}", limit=str(LIMIT)) from error
        pid, uid, _gid = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED,
                                                               _CREDENTIALS.size))
        return pid, uid


def is_its(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether a process answers for this container, as its monitor does; also where it must not be looked into, or this
    kernel cannot.
    """
    try:
        return any(_is_of(each, name, lxcpath) for each in _answered_by(pid))
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)


def may_be_its(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether this container may be what a process has started: it answers for it, or nothing tells, or it only waits
    for what has lost its monitor: then it has ended, or is a user's, or executes what process 1 does.

    By what root has it listen on, however its LXC path is spelled: it is not asked anything, and no other process has
    a say in it. Where it cannot be told it may be, since who asks this refuses then; else two would run on one disk.
    Not what runs containers without LXC, as systemd-nspawn and conmon do: who is root in one of theirs has a cgroup of
    his own, and makes others of any name in there.
    """
    try:
        if found := _answered_by(pid):
            return any(_is_of(each, name, lxcpath) for each in found)
        return status(pid, b"Uid")[0] != b"0" or _program(pid) == _program(1)
    except OSError:
        return True


def _program(pid: int) -> str:
    """Its name alone: after an upgrade a service manager that runs on is another file than a new one."""
    return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)").rpartition("/")[2]  # noqa: PTH115 -- may be gone


def _answered_by(pid: int) -> list[bytes]:
    """The addresses, as `address` has them, at which a process answers for containers; raises OSError.

    Of its own sockets: the text of /proc/net/unix has any user's lines in it, as a name may have a newline.
    """
    found = []
    process = os.pidfd_open(pid)
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just been closed
                if os.readlink(each).startswith("socket:"):  # noqa: PTH115 -- it is no path
                    found.append(_listens_at(process, int(each.name)))
    finally:
        os.close(process)
    return [each for each in found if each.endswith(b"/command")]


def _listens_at(process: int, number: int) -> bytes:
    """The abstract address of a socket in another process at which root listens, or b""; raises OSError."""
    try:
        fd = roots.take(process, number)
    except OSError as error:
        if error.errno == errno.EBADF:  # it has just been closed
            return b""
        raise
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd) as its:
        if its.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX:
            return b""
        _pid, uid, _gid = _CREDENTIALS.unpack(its.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        at = its.getsockname()
        listens = its.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and uid == ROOT
        return at if listens and isinstance(at, bytes) else b""


def _is_of(found: bytes, name: str, lxcpath: Path) -> bool:
    """A hash tells only the very spelling of the LXC path."""
    if found == address(name, lxcpath):
        return True
    path, _, its = os.fsdecode(found[1:].removesuffix(b"/command")).rpartition("/")
    return its == name and path.startswith("/") and "\0" not in path and _is_same(path, lxcpath)


def _is_same(path: str, lxcpath: Path) -> bool:
    """Whether that may be this LXC path.

    A thaw waits for this, and `path` may lie on a file server that is gone. One that does not answer may be this one,
    by a link on that server.
    """
    if os.path.normpath(path) == os.path.normpath(lxcpath) or path in _paths.silent:
        return True
    told = _paths.answers([(path, functools.partial(names.same_path, Path(path), lxcpath))])
    if not told:
        log.warning(f"{path} does not respond: what runs from there as well as here is considered the same container")
    return told[0] if told else True
