# SPDX-License-Identifier: GPL-2.0-or-later
"""The console and the ttys that LXC gives a container."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from migrator.criu import terminals
from migrator.criu.terminals import Terminal

CONSOLE = Terminal("tty[8803:17]", 100000, 100005, 0o620, ("dev/console", "dev/lxc/console"))
TTY = Terminal("tty[8801:4c]", 101000, 100005, 0o600, ("dev/tty1",))


def everybody(_id: int) -> bool:
    return True


def test_what_is_recorded_is_read_back() -> None:
    assert terminals.recorded("", everybody) == []
    assert terminals.recorded(CONSOLE.line() + TTY.line(), everybody) == [CONSOLE, TTY]


def test_a_user_of_this_host_owns_none() -> None:
    (found,) = terminals.recorded("tty[8801:4c] 1000 100005 666 dev/tty1\n", range(100000, 165536).__contains__)
    assert (found.uid, found.gid) == (0, 100005)


@pytest.mark.parametrize("line", [
    "tty[8801:4c] 0 0 620", "tty[8801:4c] 0 0 620 etc/passwd", "tty[8801:4c] 0 0 620 dev/../etc/tty1",
    "tty[8801:4c] 0 0 620 dev/tty1 dev/sda", "fd[3] 0 0 620 dev/tty1", "tty[8801:4c] 0 x 620 dev/tty1", "",
    "tty[8801:4c]\tlog-file 0 0 620 dev/tty1", "tty[8801:4c] 0 0 620 dev/tty1 #",
])
def test_records_that_make_no_sense(line: str) -> None:
    with pytest.raises(ValueError):
        terminals.recorded(line + "\n", everybody)


def test_records_without_end() -> None:
    with pytest.raises(ValueError, match="65 terminals"):
        terminals.recorded(TTY.line() * 65, everybody)


def test_what_criu_is_told_at_the_dump() -> None:
    assert terminals.dump_options([CONSOLE, TTY]) == [
        "--external", "tty[8803:17]", "--ext-mount-map", "/dev/console:console",
        "--ext-mount-map", "/dev/lxc/console:console",
        "--external", "tty[8801:4c]", "--ext-mount-map", "/dev/tty1:dev/tty1",
    ]


def test_a_tty_for_each_but_the_console() -> None:
    mine = Terminal(TTY.id, os.getuid(), os.getgid(), 0o600, ("dev/tty1", "dev/lxc/tty1"))
    with terminals.made([CONSOLE, mine]) as made:
        master, slave = made.descriptors
        path = Path(os.ttyname(slave))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert made.criu == (f"inherit-fd fd[{slave}]:tty[8801:4c]", f"ext-mount-map dev/tty1:{path}",
                             f"ext-mount-map dev/lxc/tty1:{path}")
    for descriptor in (master, slave):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_our_own_namespace_has_none_of_lxcs() -> None:
    assert all(terminal.targets for terminal in terminals.found(os.getpid()))
