#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands in a virtual machine of the rig, for `rig exec`: riglib/machine_exec.py is the other side.

It listens on a network card that only it sees: the card lies in a network namespace that has no name and no process,
so that nothing in the machine takes it for one of the host's own. Whoever connects says which command to run:

    {"command": [...], "environment": {...}}\\n

Then both sides send frames, a letter and the length of what follows (4 bytes, most significant first):

    to the machine   i: input, empty at its end    s: a signal, by number
    to the rig       w: how many more bytes of input may be sent    o: output    e: errors    x: the exit status, last

Each command has a process beside it that copies its input and output. If the connection ends, the command is killed.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

CARD = "eth1"
ADDRESS = ("169.254.1.2", 1)
WINDOW = 1 << 20
"""Bytes of input that may wait here until the command reads them."""
PIECE = 1 << 16
HEADER = struct.Struct(">cI")


def listen() -> socket.socket:
    """Move the card into a new network namespace; return a socket in there, which keeps it alive."""
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    theirs = Path(f"/proc/{holder.pid}/ns/net")
    while theirs.readlink() == Path("/proc/self/ns/net").readlink():
        if holder.poll() is not None:
            raise SystemExit("unshare --net does not work")
    os.setns(os.open(theirs, os.O_RDONLY), os.CLONE_NEWNET)
    listening = socket.socket()
    os.setns(ours, os.CLONE_NEWNET)
    ip("link", "set", CARD, "netns", str(holder.pid))
    os.setns(os.open(theirs, os.O_RDONLY), os.CLONE_NEWNET)
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{ADDRESS[0]}/30", "dev", CARD)
    ip("link", "set", CARD, "up")
    os.setns(ours, os.CLONE_NEWNET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(ADDRESS)
    listening.listen(128)
    holder.kill()
    holder.wait()
    return listening


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True)


class Command:
    """A command, its pipes, and the connection that it is run for."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte:
                raise SystemExit(0)
            line += byte
        told = json.loads(line)
        # Its end is seen in the same place as everything else that happens.
        self.ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        to_input, outputs = os.pipe(), {b"o": os.pipe(), b"e": os.pipe()}
        self.pid = os.fork()
        if self.pid == 0:
            become(told, to_input[0], outputs[b"o"][1], outputs[b"e"][1])
        self.input = to_input[1]
        os.set_blocking(self.input, False)
        os.close(to_input[0])
        self.outputs = {read: letter for letter, (read, _) in outputs.items()}
        for read, write in outputs.values():
            os.close(write)
            os.set_blocking(read, False)
        self.received = bytearray()
        self.waiting = bytearray()
        self.input_ends = False

    def send(self, letter: bytes, content: bytes) -> None:
        """Send one frame."""
        self.connection.sendall(HEADER.pack(letter, len(content)) + content)

    def serve(self) -> None:
        """Copy until the command has ended; kill it if nobody is there any more."""
        self.send(b"w", struct.pack(">I", WINDOW))
        poll = select.poll()
        poll.register(self.connection, select.POLLIN | select.POLLRDHUP)
        poll.register(self.ended, select.POLLIN)
        for read in self.outputs:
            poll.register(read, select.POLLIN)
        try:
            while True:
                if self.input >= 0 and self.waiting:
                    poll.register(self.input, select.POLLOUT)
                elif self.input >= 0:
                    poll.register(self.input, 0)
                events = dict(poll.poll())
                if self.ended in events:
                    os.read(self.ended, 64)
                    if (status := self.status()) is not None:
                        break
                if self.connection.fileno() in events:
                    self.receive()
                if self.input >= 0 and (happened := events.get(self.input)):
                    if happened & select.POLLERR:  # it reads no more: the rest is thrown away
                        self.close_input(poll)
                    else:
                        self.feed(poll)
                for read in list(self.outputs):
                    if read in events and not self.copy(read):
                        poll.unregister(read)
                        del self.outputs[read]
                        os.close(read)
                if self.input >= 0 and self.input_ends and not self.waiting:
                    self.close_input(poll)
            for read in self.outputs:
                while self.copy(read):
                    pass
            self.send(b"x", bytes([status]))
            # To close it while input is still arriving would break it off, and the status could be lost.
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(PIECE):
                pass
        except OSError:  # also what `receive` raises at the end of the connection
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.connection.close()
        self.drain()

    def status(self) -> int | None:
        """Return the command's exit status if it has ended, 128+N after signal N."""
        pid, told = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(told)
        return code if code >= 0 else 128 - code

    def receive(self) -> None:
        """Take what the other side has sent."""
        got = self.connection.recv(PIECE)
        if not got:
            raise ConnectionResetError
        self.received += got
        while len(self.received) >= HEADER.size:
            letter, length = HEADER.unpack_from(self.received)
            if len(self.received) < HEADER.size + length:
                break
            content = bytes(self.received[HEADER.size : HEADER.size + length])
            del self.received[: HEADER.size + length]
            if letter == b"s":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, content[0])
            elif content:
                self.waiting += content
            else:
                self.input_ends = True

    def feed(self, poll: select.poll) -> None:
        """Give the command some input; ask for as much again."""
        try:
            written = os.write(self.input, self.waiting[:PIECE])
        except (BlockingIOError, BrokenPipeError):  # poll(2) tells of the second at once
            return
        del self.waiting[:written]
        if written:
            self.send(b"w", struct.pack(">I", written))

    def close_input(self, poll: select.poll) -> None:
        """Let the command see the end of its input."""
        poll.unregister(self.input)
        os.close(self.input)
        self.input = -1
        self.waiting.clear()

    def copy(self, read: int) -> bool:
        """Pass some output on; false if there is none now, or will be none any more."""
        try:
            content = os.read(read, PIECE)
        except BlockingIOError:
            return False
        if content:
            self.send(self.outputs[read], content)
        return bool(content)

    def drain(self) -> None:
        """Read on for those that the command has left behind: a container's monitor must not fail to write."""
        for read in self.outputs:
            os.set_blocking(read, True)
        while self.outputs:
            ready, _, _ = select.select(list(self.outputs), [], [])
            for read in ready:
                if not os.read(read, PIECE):
                    del self.outputs[read]


def become(told: dict[str, Any], *pipes: int) -> None:
    """Become the command; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        for target, source in enumerate(pipes):
            os.dup2(source, target)
        os.setsid()
        os.chdir("/root")
        command = told["command"]
        try:
            os.execvpe(command[0], command, told["environment"])  # noqa: S606
        except OSError as error:
            print(f"rig: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(125)


def main() -> None:
    """Serve for ever."""
    listening = listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    Path("/dev/console").write_text("rig: the machine answers\n", encoding="ascii")
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            try:
                Command(connection).serve()
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
