# SPDX-License-Identifier: GPL-2.0-or-later
"""An lxc-autostart of root's on this host is told from all that is called so, and from what it has started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.copies import autostart
from migrator.host.processes import status

WAIT = "echo up; read x"


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """One that another run of these tests has started is one: those of two mutants run side by side."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Wherever it lies."""
    path = tmp_path / "lxc-autostart"
    shutil.copy(Path("/bin/sh").resolve(), path)
    return path


@contextlib.contextmanager
def lives(*command: str | Path, executable: Path | None = None) -> Iterator[int]:
    with subprocess.Popen(command, executable=executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()  # type: ignore[union-attr]


def test_it_is_seen_as_long_as_it_lives(program: Path) -> None:
    assert autostart.under_way() is None
    with lives(program, "-c", WAIT) as pid:
        assert autostart.under_way() == pid
    assert autostart.under_way() is None


def test_whatever_it_says_of_itself(program: Path) -> None:
    with lives("another", "-c", WAIT, executable=program) as pid:
        assert autostart.under_way() == pid


def test_what_only_names_it_is_none(program: Path) -> None:
    """As who reads its manual."""
    with lives("sh", "-c", WAIT, program), lives(program, "-c", WAIT, executable=Path("/bin/sh")):
        assert autostart.under_way() is None


def test_what_it_has_started_is_none(program: Path) -> None:
    """LXC's monitor of each container, for as long as that runs."""
    with lives("[lxc monitor] /pool web", "-c", WAIT, executable=program):
        assert autostart.under_way() is None


def test_behind_a_strangers_it_is_seen(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lives(program, "-c", WAIT) as strangers, lives(program, "-c", WAIT) as pid:
        monkeypatch.setattr(autostart, "_named", lambda: iter([strangers, pid]))
        monkeypatch.setattr(autostart, "status", lambda of, key: [b"4242"] * 4 if of == strangers else status(of, key))
        assert autostart.under_way() == pid


def test_one_that_has_ended_is_none(program: Path) -> None:
    """And only its parent has not heard of that."""
    process = subprocess.Popen([program, "-c", "exit"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert autostart.under_way() is None
    finally:
        process.wait()


def test_that_of_another_user_is_none(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lives(program, "-c", WAIT):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert autostart.under_way() is None


@pytest.mark.parametrize(("real", "seen"), [("root", True), ("another user", False)])
def test_whose_it_is_is_told_by_who_has_started_it(program: Path, monkeypatch: pytest.MonkeyPatch, real: str,
                                                   seen: bool) -> None:
    """And not by whose rights it has: a file of that name may be set-user-ID."""
    root, other = (str(number).encode() for number in (os.geteuid(), os.geteuid() + 1))
    ids = [root, other, other, other] if real == "root" else [other, root, root, root]
    monkeypatch.setattr(autostart, "status", lambda _, key: ids if key == b"Uid" else [])
    with lives(program, "-c", WAIT) as pid:
        assert autostart.under_way() == (pid if seen else None)


def test_one_inside_a_container_is_none(program: Path) -> None:
    with lives("unshare", "--user", "--map-root-user", "--pid", "--fork", program, "-c", WAIT):
        assert autostart.under_way() is None


@pytest.mark.parametrize("stranger", ["of another user", "in a container"])
def test_no_stranger_is_asked_for_his_arguments(program: Path, monkeypatch: pytest.MonkeyPatch, stranger: str) -> None:
    """Who reads them waits as long as the stranger likes: he has his memory locked by a file system that he serves."""
    honest = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        assert path.name != "cmdline"
        return honest(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    contained = ["unshare", "--user", "--map-root-user", "--pid", "--fork"] if stranger == "in a container" else []
    with lives(*contained, program, "-c", WAIT):
        if not contained:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert autostart.under_way() is None
