# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs are found, and a thaw waits for no folder of $PATH: also not for one that died while it stood still."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base import bounded_ask, programs
from migrator.base import run as run_module
from migrator.base.run import environment, run
from migrator.criu import criu_dump
from migrator.errors.this_host import ProgramMissing
from migrator.host import network, processes


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_found", {})
    monkeypatch.setattr(programs, "_folders", bounded_ask.Asking())


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two of $PATH, before and behind what this host has."""
    made = tmp_path / "first", tmp_path / "last"
    for folder in made:
        folder.mkdir()
    monkeypatch.setattr(bounded_ask, "LIMIT", 600.0)  # but what answers is waited for
    monkeypatch.setenv("PATH", f"{made[0]}:/usr/sbin:/usr/bin:{made[1]}")
    return made


def put(folder: Path, name: str, says: str, mode: int = 0o755) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho {says}\n")
    file.chmod(mode)
    return file


class Dead:
    """A folder whose server is gone: who asks it for a file waits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.back, self.asked = threading.Event(), 0
        honest = Path.stat

        def stat(path: Path, **how: bool) -> os.stat_result:
            if path.parent == folder:
                self.asked += 1
                assert self.back.wait(60)
            return honest(path, **how)

        monkeypatch.setattr(bounded_ask, "LIMIT", 1.0)  # nor is it short for what answers
        monkeypatch.setattr(Path, "stat", stat)


@pytest.fixture
def killed() -> Iterator[list[Dead]]:
    """At the end nobody waits any more."""
    dead: list[Dead] = []
    yield dead
    for each in dead:
        each.back.set()


def test_the_first_in_path_is_started(folders: tuple[Path, Path]) -> None:
    first, last = folders
    put(last, "say", "last")
    assert run(["say"]).text == "last\n" and programs.find("say") == str(last / "say")
    assert programs.find("/opt/x") == "/opt/x" and programs.find("no-such-program") is None
    put(first, "tell", "no", 0o644)
    (first / "speak").mkdir()
    for name in ("tell", "speak"):
        put(last, name, "yes")
        assert run([name]).text == "yes\n"


@pytest.mark.parametrize("broken", ["#!/no/interpreter\n", "\x7fis no program\n", None])
def test_what_cannot_be_executed_is_passed_over(folders: tuple[Path, Path], broken: str | None,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As execvp(3) does."""
    first, last = folders
    put(last, "say", "last")
    put(first, "say", "first")
    if broken is not None:
        (first / "say").write_text(broken)
    else:  # a mount without programs
        honest = subprocess.Popen

        def start(words: Any, *, executable: str, **more: Any) -> Any:
            if executable.startswith(str(first)):
                raise PermissionError(errno.EACCES, "Permission denied", executable)
            return honest(words, executable=executable, **more)

        monkeypatch.setattr(subprocess, "Popen", start)
    assert run(["say"]).text == "last\n"
    (last / "say").unlink()
    with pytest.raises(OSError if broken != "#!/no/interpreter\n" else ProgramMissing) as raised:
        run(["say"])
    assert not isinstance(raised.value, FileNotFoundError)


def test_where_it_is_not_the_file_no_other_one_is_tried(folders: tuple[Path, Path],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of it, say, is not started because memory was short."""
    for folder in folders:
        put(folder, "say", folder.name)
    tried: list[str] = []

    def start(*_: object, executable: str, **more: object) -> Any:
        tried.append(executable)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(BlockingIOError):
        run(["say"])
    assert tried == [str(folders[0] / "say")]


def test_what_was_found_is_not_looked_for_again(folders: tuple[Path, Path]) -> None:
    first, last = folders
    put(last, "say", "last")
    run(["say"])
    other = put(first, "say", "first")
    assert run(["say"]).text == "last\n"
    (last / "say").unlink()  # but by an upgrade it is elsewhere
    assert run(["say"]).text == "first\n"
    other.unlink()
    with pytest.raises(ProgramMissing):
        run(["say"])


def test_what_is_no_whole_path_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "say", "here")
    monkeypatch.setenv("PATH", ":.:/usr/bin")
    assert programs.find("say") is None


def test_a_folder_that_is_dead_keeps_nobody(folders: tuple[Path, Path], killed: list[Dead],
                                            monkeypatch: pytest.MonkeyPatch,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    """A command that begins when it is: it is waited for once, by whichever look comes first."""
    first, last = folders
    put(first, "say", "first")
    put(last, "say", "last")
    killed.append(dead := Dead(first, monkeypatch))
    assert list(processes.running("say")) == [] and run(["say"]).text == "last\n"
    assert dead.asked == 1 and f"{first}, a folder of $PATH, does not" in " ".join(capfd.readouterr().err.split())
    assert environment()["PATH"].split(":")[0] == "/usr/sbin", "nor do the programs look there that are started"


def test_one_that_answers_in_the_end_is_asked_again(folders: tuple[Path, Path], killed: list[Dead],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: one that is late always is not to be waited for by each look."""
    first, last = folders
    put(first, "say", "first")
    put(last, "say", "last")
    put(first, "tell", "tells")
    killed.append(dead := Dead(first, monkeypatch))
    assert run(["say"]).text == "last\n" and criu_dump.path().split(":")[0] == "/usr/sbin"
    with pytest.raises(ProgramMissing):
        run(["tell"])
    dead.back.set()
    for thread in threading.enumerate():
        if thread.name == "migrator-asking":
            thread.join()
    assert run(["say"]).text == "first\n" and run(["tell"]).text == "tells\n"
    assert environment()["PATH"].split(":")[0] == str(first)
    put(first, "criu", "criu")
    assert criu_dump.path().split(":")[0] == str(first)
    dead.back.clear()
    assert programs.find("another") is None
    dead.back.set()
    for thread in threading.enumerate():
        if thread.name == "migrator-asking":
            thread.join()
    assert environment()["PATH"].split(":")[0] == "/usr/sbin"


def test_no_thaw_asks_it_once_it_is_known_what_is_where(folders: tuple[Path, Path], killed: list[Dead],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = folders
    for name in programs._NEEDED:
        put(last, name, name)
    put(last, "tar", "tar")
    programs.learn()
    criu_dump.path()
    killed.append(dead := Dead(first, monkeypatch))
    network.hear("0badc0de")
    assert criu_dump.processes([Path("/nowhere")]) == []
    assert network._inside(4711)[3:] == [programs.find("ip"), "-j"]
    assert run(["lxc-unfreeze"]).status == 0
    assert str(first) not in criu_dump.path().split(":") and str(last) in criu_dump.path().split(":")
    assert dead.asked == 0


def test_criu_finds_what_it_would(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order."""
    first, last = folders
    monkeypatch.setenv("PATH", f"{first}/:/usr/sbin:/usr/bin:{last}//")
    put(last, "criu", "$PATH")
    put(first, "ip", "no")
    here = criu_dump.path().split(":")
    assert [here[0], *[each for each in here[1:] if not each.endswith("bin")]] == [str(first), str(last)]
    told: list[Any] = []
    honest = run_module._start

    def start(*given: Any, **more: Any) -> Any:
        told.append(more["env"])
        return honest(*given, **more)

    monkeypatch.setattr(run_module, "_start", start)
    criu_dump.dump("web", ["criu"], last)
    assert told == [{"PATH": ":".join(here), "TAR_OPTIONS": criu_dump.TAR_OPTIONS}]


def test_where_no_thread_can_be_made(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put(folders[1], "say", "last")

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert programs.find("say") == str(folders[1] / "say")
