# SPDX-License-Identifier: GPL-2.0-or-later
"""A program whose standard input, output or error was closed by who has started it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

CLOSED = [numbers for count in range(4) for numbers in itertools.combinations((0, 1, 2), count)]

# The thaw of a container whose network cannot be given back, which is told.
THAW = """
import os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from migrator import __main__, cli
from migrator.base import log
from migrator.base.result import Result
from migrator.copies import thawing
from migrator.host import lxc, network

def fails(*_):
    raise OSError("nft has failed")

def run():
    network.bring_back_dad = network.plug = fails
    lxc.Container = fails
    lxc.thaw_cgroup = lambda _: Path(sys.argv[1]).write_text("thawed")
    thawing.thaw(thawing.Frozen("0badc0de", "web", Path("/pool"), 1, Path("/nowhere"), ()))
    log.at_signal("Interrupted")
    subprocess.run(["sh", "-c", "echo x; echo y >&2; cat"], check=True, stdin=sys.stdin)
    return Result({}, "done")

cli.parse = lambda _: SimpleNamespace(run=run)
status = __main__.main([])
assert all(Path(f"/proc/self/fd/{number}").exists() for number in range(3))
sys.exit(status)
"""


def started(command: list[str], closed: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    without = " ".join(("<&-", ">&-", "2>&-")[number] for number in closed)
    shell = ["sh", "-c", f'exec "$@" {without}', "sh", *command]
    return subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", CLOSED)
def test_a_container_is_thawed_all_the_same(tmp_path: Path, closed: tuple[int, ...]) -> None:
    done = started([sys.executable, "-c", THAW, str(tmp_path / "cgroup.freeze")], closed)
    assert (tmp_path / "cgroup.freeze").read_text() == "thawed" and done.returncode == 0, done.stderr
    assert ("web runs again, but" in done.stderr) is (2 not in closed) and "Traceback" not in done.stderr
    assert done.stdout.splitlines() == ([] if 1 in closed else ["x", "done"])


@pytest.mark.parametrize("closed", CLOSED)
def test_a_watchdog_that_is_told_nothing_ends(closed: tuple[int, ...]) -> None:
    """It says why it has not begun, if it can."""
    done = started([sys.executable, "-m", "migrator.copies.watchdog"], closed)
    assert done.returncode == 1 and "AttributeError" not in done.stderr
    assert done.stdout == ""


def test_what_is_open_stays_as_it_is() -> None:
    probe = """
import os, sys
from migrator.base import standard_files
before = [os.fstat(number)[:3] for number in range(3)], sys.stdin, sys.stdout, sys.stderr
standard_files.open_missing()
assert before == ([os.fstat(number)[:3] for number in range(3)], sys.stdin, sys.stdout, sys.stderr)
"""
    assert started([sys.executable, "-c", probe], ()).returncode == 0
