# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hook of a container starts is not what migrator has started: it is neither waited for nor ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.base.run import environment
from migrator.copies import no_memory
from migrator.errors.memory import StartFailed
from migrator.host import lxc

ID = "0badc0de"
MARK = {no_memory.STARTS: ID}
HOOKS = MARK | {"LXC_NAME": "web"}  # as LXC sets it before the first hook, and passes it on
STARTING = ["lxc-start", "-d", "-n", "{}", "-P", "/pool"]
MONITOR = ["[lxc monitor] /pool {}"]


class Web:
    name, lxcpath = "web", Path("/pool")


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is called lxc-start, and lives until it is ended, whatever its arguments are."""
    path = tmp_path / "lxc-start"
    shutil.copy(Path("/bin/sh").resolve(), path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(no_memory, "log_of", lambda _: Path("/dev/null"))
    return path


@contextlib.contextmanager
def lives(program: Path, words: Sequence[str], name: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """It runs a script from its input, of which nothing comes."""
    title = [each.format(name) for each in words]
    with subprocess.Popen([title[0], "-s", "--", *title[1:]], executable=program, env=env,
                          stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("words", [STARTING, MONITOR], ids=["starting", "monitor"])
def test_what_migrator_has_started_is_found(program: Path, words: list[str]) -> None:
    with lives(program, words, "web", MARK) as process:
        assert no_memory.has_monitor(ID) and no_memory.is_starting(ID) is (words is STARTING)
        assert not no_memory.has_monitor("ffffffff")
        assert list(no_memory._ours(ID)) == [process.pid]


@pytest.mark.parametrize("words", [STARTING, MONITOR], ids=["starting", "monitor"])
def test_what_a_hook_of_it_has_started_is_left_alone(program: Path, words: list[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []
    monkeypatch.setattr(no_memory, "run", lambda argv, **_: ran.append(argv))
    monkeypatch.setattr(no_memory, "END_LIMIT", 0.0)
    with lives(program, words, "sidecar", HOOKS) as sidecar:
        assert not no_memory.has_monitor(ID) and not no_memory.is_starting(ID)
        no_memory.end(cast("lxc.Container", Web), ID)
        assert ran == [] and sidecar.poll() is None


def test_what_migrator_has_started_is_ended_beside_it(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lives(program, MONITOR, "web", MARK) as web, lives(program, MONITOR, "sidecar", HOOKS) as sidecar:
        def run(argv: Sequence[str], **_: Any) -> None:
            assert argv == ["lxc-stop", "-k", "-n", "web", "-P", "/pool"]
            web.kill()
            web.wait()

        monkeypatch.setattr(no_memory, "run", run)
        no_memory.end(cast("lxc.Container", Web), ID)
        assert web.poll() is not None and sidecar.poll() is None


def test_what_does_not_end_is_told(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_memory, "run", lambda *_, **__: None)
    monkeypatch.setattr(no_memory, "END_LIMIT", 0.0)
    with lives(program, MONITOR, "web", MARK) as process, pytest.raises(StartFailed, match=str(process.pid)):
        no_memory.end(cast("lxc.Container", Web), ID)


def test_migrator_passes_no_hooks_mark_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Itself typed in a hook, say: what it starts would not be found again."""
    monkeypatch.setenv("LXC_NAME", "another")
    assert "LXC_NAME" not in environment(MARK)
