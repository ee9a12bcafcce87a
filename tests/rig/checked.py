# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian guest for `migrator check`, and processes that do something in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.rig import DESTINATION, POOL, Outcome, Rig, wait_for

NAME = "redis"
# A process of the container's own: it has left the lxc-attach that brought it in, and holds nothing of the host.
DAEMON = r"""
use POSIX; use Socket; exit if fork; setsid; POSIX::close($_) for 3..300;
open STDIN, "</dev/null"; open STDOUT, ">/dev/null"; open STDERR, ">/tmp/said"; $0 = "worker";
%s
open READY, ">/tmp/ready"; close READY;
sleep 1000 while 1;
"""
# Its parent may change its name between two looks, and redis-server, as a first process, does not take zombies away.
WORKERS = "pgrep -x -r D,R,S 'perl|worker' >/dev/null"


def check(rig: Rig, *arguments: str, name: str = NAME, destination: str | None = DESTINATION) -> Outcome:
    where = ["-d", destination] if destination else []
    return rig.migrator("hosta", "check", "-P", POOL, name, *where, "--json", *arguments)


def found(outcome: Outcome) -> dict[str, str]:
    """The severity of each code, the worst where it was found several times."""
    return {finding["code"]: finding["severity"] for finding in reversed(outcome.json["findings"])}


@pytest.fixture(scope="module")
def guest(rig: Rig) -> Iterator[Rig]:
    """One Debian container for all situations that end with a process."""
    rig.purge()
    rig.sh("hosta", "mkdir -p /run/shared")
    rig.guest("hosta", NAME, "redis", config="lxc.mount.entry = /run/shared run/shared none bind,create=dir")
    rig.sh("hostb", "mkdir -p /run/shared")
    yield rig
    rig.sh("hosta", "rm -rf /run/shared")
    rig.sh("hostb", "rm -rf /run/shared")
    assert rig.purge() == []


def attach(rig: Rig, *argv: str) -> str:
    return rig.exec("hosta", "lxc-attach", "-P", POOL, "-n", NAME, "--", *argv).stdout


@contextlib.contextmanager
def daemon(rig: Rig, perl: str) -> Iterator[None]:
    """A process of the container that has done this."""
    attach(rig, "rm", "-f", "/tmp/ready", "/tmp/said")
    attach(rig, "perl", "-e", DAEMON % perl)
    ready = f"test -e {POOL}/{NAME}/rootfs/tmp/ready || ! {WORKERS}"
    wait_for(lambda: rig.exec("hosta", "sh", "-c", ready, check=False).status == 0, "the process is ready")
    try:
        said = rig.sh("hosta", f"cat {POOL}/{NAME}/rootfs/tmp/said")
        assert rig.exec("hosta", "test", "-e", f"{POOL}/{NAME}/rootfs/tmp/ready", check=False).status == 0, said
        yield
    finally:
        rig.sh("hosta", f"pkill -9 -x 'perl|worker'; while {WORKERS}; do sleep 0.02; done")
