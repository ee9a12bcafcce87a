# SPDX-License-Identifier: GPL-2.0-or-later
"""A systemd in a container, told to look at its processes anew."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from migrator.criu import systemd_managers

_CHILD = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)  # PR_SET_NAME
signal.pthread_sigmask(signal.SIG_BLOCK, [int(number) for number in sys.argv[2:]])
print("ready", flush=True)
sys.stdin.readline()
print(*signal.sigpending(), flush=True)
"""


@contextlib.contextmanager
def named(name: str, *blocked: int) -> Iterator[subprocess.Popen[str]]:
    """A process of that name; it tells at the end what it has been sent."""
    command = [sys.executable, "-c", _CHILD, name, *map(str, blocked)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def pending(process: subprocess.Popen[str]) -> str:
    return process.communicate("\n")[0].strip()


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel since 6.9."""
    monkeypatch.setattr(systemd_managers, "numbered", lambda: True)


@pytest.mark.usefixtures("numbered")
def test_a_systemd_is_told_and_nobody_else() -> None:
    with named("systemd", 1, 15) as manager, named("systemd-logind", 1) as service, named("systemd", 15) as other:
        pids = [service.pid, other.pid, manager.pid, 1 << 22]
        record = systemd_managers.record(pids)
        assert record == f"{manager.pid}\n"
        systemd_managers.reload(record, pids)
        assert pending(manager) == "1"
        assert pending(service) == ""
        assert pending(other) == "", "it would have been killed"


def test_what_a_record_from_elsewhere_can_do() -> None:
    """Of the container's own processes those are told that are not ended by it, and no other process at all."""
    with named("systemd", 1) as manager, named("systemd", 15) as other, named("sh", 1) as shell:
        text = f"{manager.pid}\n{other.pid}\n{shell.pid}\n1\nx\n-1\n\n"
        systemd_managers.reload(text, [other.pid, shell.pid, 1 << 22])
        assert (pending(manager), pending(other), pending(shell)) == ("", "", "")


def test_not_where_the_kernel_does_not_number_its_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    with named("systemd", 1) as manager:
        monkeypatch.setattr(systemd_managers, "numbered", lambda: False)
        assert systemd_managers.record([manager.pid]) == ""


def test_this_kernel() -> None:
    first, second = os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid())
    try:
        assert systemd_managers.numbered() == (os.fstat(first).st_ino != os.fstat(second).st_ino)
    finally:
        os.close(first)
        os.close(second)
