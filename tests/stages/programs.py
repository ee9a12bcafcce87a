# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator` as a program of its own, with a folder of the test's in the place of its state and its configuration.

Each is the fork of a process that has imported everything once: to do that anew would take most of a test's time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__, "tests.stages.preloaded"])


def _main(folder: str, argv: list[str], streams: list[Any]) -> None:
    for number, stream in enumerate(streams):
        given = stream.detach()
        os.dup2(given, number)
        os.close(given)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.environ["NO_COLOR"] = "1"
    from migrator.__main__ import main
    from tunnel.identity import private_files, tunnel_config

    private_files.STATE = Path(folder)
    tunnel_config.PATH = private_files.STATE / "tunnel.conf"
    sys.argv = ["migrator", *argv]
    sys.exit(main())


class Program:
    """A `migrator` that runs; `out` and `err` are what it has printed, as far as that was read.

    `terminal` is a file to read from instead of a pipe.
    """

    def __init__(self, folder: Path, *argv: str, terminal: int | None = None) -> None:
        self.out = self.err = ""
        ends = [os.pipe() for _ in range(3)]
        theirs = [terminal if terminal is not None else ends[0][0], ends[1][1], ends[2][1]]
        self.process = _FORKS.Process(target=_main, args=(str(folder), list(argv), [DupFd(fd) for fd in theirs]))
        self.process.start()
        for fd in (ends[0][0], ends[1][1], ends[2][1]):
            os.close(fd)
        self.stdin = os.fdopen(ends[0][1], "w")
        self.stdout = os.fdopen(ends[1][0])
        self._reader = threading.Thread(target=self._read, args=(ends[2][0],))
        self._reader.start()

    def _read(self, stderr: int) -> None:
        while piece := os.read(stderr, 65536):
            self.err += piece.decode(errors="replace")
        os.close(stderr)

    def line(self) -> str:
        """The next line on stdout."""
        line = self.stdout.readline()
        self.out += line
        return line.rstrip("\n")

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def end(self, given: str = "") -> int:
        """Wait for its end; its exit status. Safe to repeat."""
        if not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.write(given)
                self.stdin.close()
            with self.stdout:
                self.out += self.stdout.read()
            self._reader.join()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def said(self) -> str:
        """Everything it has printed, on either stream."""
        return self.out + self.err
