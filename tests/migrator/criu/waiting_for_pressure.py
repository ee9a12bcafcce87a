# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that has a file of pressure open and waits for it by epoll, as a service of systemd does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ANY_STALL = "some 1 2000000"  # microseconds: one in which somebody waits for a processor is enough
_CHILD = """
import os, select, sys
file = os.open(sys.argv[1], int(sys.argv[3]))
number = int(sys.argv[4])
os.dup2(file, number)
os.close(file)
if sys.argv[2]:
    os.write(number, sys.argv[2].encode())
waits = select.epoll()
waits.register(number, select.EPOLLPRI)
waits.poll(0)
print(waits.fileno(), flush=True)
while sys.stdin.readline():
    print(*(event for _, event in waits.poll(0)), flush=True)
"""


class Waiting:
    """A process with a file of pressure open as 7, which it waits for by epoll."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        assert process.stdout
        self.epoll = int(process.stdout.readline())

    def events(self) -> str:
        """What it is told now."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def entry(self) -> list[str]:
        """What it waits for, with its data."""
        lines = Path(f"/proc/{self.pid}/fdinfo/{self.epoll}").read_text().splitlines()
        return [line for line in lines if line.startswith("tfd:")]


@contextlib.contextmanager
def waiting(path: str, trigger: str = "", environment: str = "", flags: int = os.O_RDWR,
            number: int = 7) -> Iterator[Waiting]:
    command = [sys.executable, "-c", _CHILD, path, trigger, str(flags), str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={"MEMORY_PRESSURE_WRITE": environment} if environment else {}) as process:
        try:
            yield Waiting(process)
        finally:
            process.kill()
