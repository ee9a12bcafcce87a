# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command in a virtual machine: this side of what vagrant/machine/agent.py describes.

    python3 -S -m riglib.machine_exec COMMAND...    in the network namespace that the machine's second card leads to
"""

import _signal  # type: ignore[import-not-found]
import json
import os
import select
import socket
import struct
import sys
from collections.abc import Sequence

from riglib.enter import ENVIRONMENT, EXEC_FAILED, FORWARDED, PASSED_ON

ADDRESS = ("169.254.1.2", 1)
OURS = "169.254.1.1/30"
"""The address of this end of the link; the machine's is the other one."""
HEADER = struct.Struct(">cI")
PIECE = 1 << 16
CONNECT_LIMIT = 60.0
"""Seconds. A machine that does not answer within them is starting, hangs, or is dead."""


def execute(command: Sequence[str]) -> int:
    """Run a command in the machine, pass input, output and signals on, return its exit status; 128+N after signal N.

    Raises OSError if the machine does not answer, or no more.
    """
    woken, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    pending: list[int] = []
    for number in FORWARDED:
        _signal.signal(number, lambda number, _: pending.append(number))
    _signal.set_wakeup_fd(wakeup)
    connection = socket.create_connection(ADDRESS, CONNECT_LIMIT)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    environment = ENVIRONMENT | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    connection.sendall(json.dumps({"command": list(command), "environment": environment}).encode() + b"\n")
    window, received = 0, bytearray()
    while True:
        wanted: list[socket.socket | int] = [connection, woken, *([0] if window > 0 else [])]
        ready, _, _ = select.select(wanted, [], [])
        if woken in ready:
            os.read(woken, 64)
            while pending:
                connection.sendall(HEADER.pack(b"s", 1) + bytes([pending.pop(0)]))
        if connection in ready:
            got = connection.recv(4 * PIECE)
            if not got:
                raise ConnectionResetError(104, "the machine has ended the connection")
            received += got
            while len(received) >= HEADER.size:
                letter, length = HEADER.unpack_from(received)
                end = HEADER.size + length
                if len(received) < end:
                    break
                content = bytes(received[HEADER.size : end])
                del received[:end]
                if letter == b"x":
                    return content[0]
                if letter == b"w":
                    window += int.from_bytes(content, "big")
                else:
                    write(1 if letter == b"o" else 2, content)
        if 0 in ready:
            content = read_input(min(window, PIECE))
            connection.sendall(HEADER.pack(b"i", len(content)) + content)
            window = window - len(content) if content else -(1 << 62)  # its end: nothing more is sent


def read_input(limit: int) -> bytes:
    """Read from standard input; one that is closed, or a folder, is empty."""
    try:
        return os.read(0, limit)
    except OSError:
        return b""


def write(target: int, content: bytes) -> None:
    """Write to standard output or error; who has closed it wants no more, and ends as by SIGPIPE."""
    view = memoryview(content)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BrokenPipeError:
            _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGPIPE)
        except BlockingIOError:
            select.select([], [target], [])


if __name__ == "__main__":
    try:
        sys.exit(execute(sys.argv[1:]))
    except OSError as error:
        print(f"rig: the machine does not answer: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXEC_FAILED)
