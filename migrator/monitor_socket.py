# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for a container: liblxc asks a socket that is named after it, and any user of the host may bind one.

A container's monitor listens on an abstract socket (unix(7)), which has no owner and no mode, and goes by the LXC path
and the container's name. liblxc believes whoever holds it: that it runs, and which process is its first.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

from migrator import names
from migrator.errors import CommandTimeout

ROOT = 0
LIMIT = 10  # whole seconds; a monitor takes connections as long as its queue has room, be it stopped
_ROOM = 106  # bytes for a name, of the 108 in sockaddr_un
_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group


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


def is_anothers(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether a process answers for other containers than this one alone, as the monitor of one does; raises OSError.

    By what it listens on itself (/proc/net/unix), however its LXC path is spelled: it is not asked anything.
    One that has ended answers for none.
    """
    found = _answered_by(pid)
    return bool(found) and not any(_is_of(each, name, lxcpath) for each in found)


def _answered_by(pid: int) -> list[bytes]:
    """The addresses, as `address` has them, at which a process answers for containers."""
    held = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one is just closed, or all of them
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                held.add(os.readlink(each))  # noqa: PTH115 -- it is no path
    lines = [line.split(None, 7) for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]]
    return [b"\0" + line[7][1:] for line in lines if len(line) == 8 and line[7].startswith(b"@")
            and line[7].endswith(b"/command") and f"socket:[{int(line[6])}]" in held]


def _is_of(found: bytes, name: str, lxcpath: Path) -> bool:
    """A hash tells only the very spelling of the LXC path."""
    if found == address(name, lxcpath):
        return True
    path, _, its = os.fsdecode(found[1:].removesuffix(b"/command")).rpartition("/")
    return its == name and path.startswith("/") and names.same_path(Path(path), lxcpath)
