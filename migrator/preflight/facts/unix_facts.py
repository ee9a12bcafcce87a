# SPDX-License-Identifier: GPL-2.0-or-later
"""Which UNIX sockets of a network namespace are connected with which, and to what they are bound.

The kernel is asked through netlink (sock_diag(7)).

/proc/net/unix does not show a socket's peer, and a socket whose peer is a process of the host (through a directory
bound from there, such as /run/dbus) cannot be dumped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from migrator.base import log

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
SHOW_NAME, SHOW_VFS, SHOW_PEER, SHOW_ICONS = 0x1, 0x2, 0x4, 0x8
ATTRIBUTE_NAME, ATTRIBUTE_VFS, ATTRIBUTE_PEER, ATTRIBUTE_ICONS = 0, 1, 2, 3
CLONE_NEWNET = 0x40000000
LIMIT = 5.0  # seconds
ALL_STATES = 0xFFFFFFFF


class Bound(NamedTuple):
    """What a socket is bound to."""

    name: str  # as passed to bind(2), possibly relative to an unknown directory
    file: int  # the inode number of the file created by that; the kernel gives the lowest 32 bits


def outside(pid: int, owned: frozenset[int]) -> frozenset[int]:
    """Those of the sockets (inodes) in the network namespace of `pid` that have a peer which is not among them.

    A connection that waits to be accepted belongs to the listening socket. Empty if the kernel cannot be asked.
    """
    peers, waiting = parse(_ask(pid))
    inside = owned | {inode for listener in owned for inode in waiting.get(listener, ())}
    return frozenset(inode for inode in owned if peers.get(inode, 0) not in inside | {0})


def bound(pid: int) -> dict[int, Bound]:
    """The sockets (inodes) in the network namespace of `pid` that are bound to a path, or were accepted by one that is.

    Empty if the kernel cannot be asked.
    """
    return parse_bound(_ask(pid))


def _ask(pid: int) -> bytes:
    """The kernel's answer, from a thread that enters the namespace; the rest of the program stays where it is."""
    answer: list[bytes] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                answer.append(_dump())
            finally:
                os.close(namespace)

    thread = threading.Thread(target=work, name="unix-facts", daemon=True)
    thread.start()
    thread.join(2 * LIMIT)
    if not answer:
        log.debug(f"no facts about the UNIX sockets of process {pid}")
    return answer[0] if answer else b""


def _dump() -> bytes:
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ALL_STATES, 0,
                       SHOW_NAME | SHOW_VFS | SHOW_PEER | SHOW_ICONS, 0, 0)
    header = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    found = b""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        channel.settimeout(LIMIT)
        channel.send(header + body)
        while True:
            part = channel.recv(1 << 18)
            found += part
            kinds = [kind for kind, _ in messages(part)]
            if not kinds or NLMSG_DONE in kinds or NLMSG_ERROR in kinds:
                return found


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each netlink message (netlink(7))."""
    return _each(data, "=IH", 16)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute in a message (rtnetlink(3))."""
    return _each(data, "=HH", 4)


def _each(data: bytes, begin: str, head: int) -> Iterator[tuple[int, bytes]]:
    """What stands one behind the other, each with a head of `head` bytes that begins with its size and its type.

    One that is cut off or whose size makes no sense ends it.
    """
    position = 0
    while position + head <= len(data):
        size, kind = struct.unpack_from(begin, data, position)
        if size < head or position + size > len(data):
            return
        yield kind, data[position + head : position + size]
        position += -(-size // 4) * 4


def parse(answer: bytes) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """(peer of each socket, connections that wait at each listening socket), all of them inodes."""
    peers: dict[int, int] = {}
    waiting: dict[int, tuple[int, ...]] = {}
    for kind, body in messages(answer):
        if kind != SOCK_DIAG_BY_FAMILY or len(body) < 16:
            continue
        (inode,) = struct.unpack_from("=I", body, 4)
        for attribute, value in attributes(body[16:]):
            if attribute == ATTRIBUTE_PEER and len(value) == 4:
                (peers[inode],) = struct.unpack("=I", value)
            elif attribute == ATTRIBUTE_ICONS:
                waiting[inode] = struct.unpack(f"={len(value) // 4}I", value[: len(value) // 4 * 4])
    return peers, waiting


def parse_bound(answer: bytes) -> dict[int, Bound]:
    """The sockets, by inode, that have a path; those with an abstract name have no file."""
    found: dict[int, Bound] = {}
    for kind, body in messages(answer):
        if kind != SOCK_DIAG_BY_FAMILY or len(body) < 16:
            continue
        (inode,) = struct.unpack_from("=I", body, 4)
        values = dict(attributes(body[16:]))
        name, file = values.get(ATTRIBUTE_NAME, b"").partition(b"\0")[0], values.get(ATTRIBUTE_VFS, b"")
        if name and len(file) == 8:
            found[inode] = Bound(os.fsdecode(name), *struct.unpack_from("=I", file))
    return found
