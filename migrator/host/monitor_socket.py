# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for a container: liblxc asks a socket named after it, and any user of the host may bind that.

A container's monitor listens on an abstract socket (unix(7)), which has no owner and no mode, named after the LXC path
and the container. liblxc believes whoever holds it about whether the container runs and which process is its PID 1.
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
LIMIT = 10  # whole seconds; a monitor accepts connections while its queue has room, even if it is stopped
_ROOM = 106  # bytes for a name, of the 108 in sockaddr_un
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

# LXC paths of other containers: nothing may be held up for long because of them.
_paths = bounded_ask.Asking(always=True)


def address(name: str, lxcpath: Path) -> bytes:
    """The socket's address: LXCPATH/NAME/command, or a hash of that if it is too long.

    Follows lxc_make_abstract_socket_name in liblxc's commands_utils.c.
    """
    place = os.fsencode(f"{lxcpath}/{name}")
    full = place + b"/command"
    if len(full) >= _ROOM:
        full = b"lxc/%016x/command" % _fnv_1a(place)
    return b"\0" + full


def _fnv_1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 % (1 << 64)
    return found


def holder(name: str, lxcpath: Path) -> tuple[int, int] | None:
    """The process and the user that listen there (SO_PEERCRED in unix(7)), None if nobody does.

    They are those from when it began to listen. Raises CommandTimeout if no connection is accepted.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        # Not by settimeout(): with a non-blocking socket, a full queue fails at once.
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
    """Whether a process answers for this container, as its monitor does.

    True as well if the process must not be inspected, or this kernel cannot.
    """
    try:
        return any(_is_of(each, name, lxcpath) for each in _answered_by(pid))
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)


def may_be_its(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether a process may have started this container.

    That is so if it answers for it, or nothing tells, or it is merely waiting for a container that lost its monitor
    (the parent has ended, or is a user's, or executes the same file as process 1).

    Judged by the sockets on which root has it listen, however its LXC path is spelled: the process itself is not asked,
    and no other process can influence the answer. If it is unknown, the answer is True, because the caller then
    refuses; otherwise two would run on one disk. Programs that run containers without LXC, such as systemd-nspawn and
    conmon, are excluded: root in one of their containers has a cgroup and can make others of any name in it.
    """
    try:
        if found := _answered_by(pid):
            return any(_is_of(each, name, lxcpath) for each in found)
        return status(pid, b"Uid")[0] != b"0" or _program(pid) == _program(1)
    except OSError:
        return True


def _program(pid: int) -> str:
    """Its name only: after an upgrade, a service manager that keeps running is a different file from the new one."""
    return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)").rpartition("/")[2]  # noqa: PTH115 -- may be gone


def _answered_by(pid: int) -> list[bytes]:
    """The addresses, in the form of `address`, at which a process answers for containers; raises OSError.

    Taken from its own sockets: in the text of /proc/net/unix any user can forge lines, because a name may contain a
    newline.
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
    """The abstract address of a socket in another process on which root listens, or b""; raises OSError."""
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
    """A hash matches only the exact spelling of the LXC path."""
    if found == address(name, lxcpath):
        return True
    path, _, its = os.fsdecode(found[1:].removesuffix(b"/command")).rpartition("/")
    return its == name and path.startswith("/") and "\0" not in path and _is_same(path, lxcpath)


def _is_same(path: str, lxcpath: Path) -> bool:
    """Whether that may be this LXC path.

    A thaw is waiting for this, and `path` may be on a file server that is gone. One that does not answer may be this
    one, through a symlink on that server.
    """
    if os.path.normpath(path) == os.path.normpath(lxcpath) or path in _paths.silent:
        return True
    told = _paths.answers([(path, functools.partial(names.same_path, Path(path), lxcpath))])
    if not told:
        log.warning(f"{path} does not respond: what runs from there as well as here is considered the same container")
    return told[0] if told else True
