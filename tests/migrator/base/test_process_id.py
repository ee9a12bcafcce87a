# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that are told apart from all others, and short-lived programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from migrator.base import process_id
from migrator.base.process_id import Process, ProgramFailed


def test_a_process_is_known_by_pid_and_start() -> None:
    assert Process.current().is_alive()
    assert Process.from_json(json.loads(json.dumps(Process.current().to_json()))) == Process.current()
    assert not Process.current()._replace(start=1).is_alive()
    for nonsense in (None, 1, {}, {"pid": 1, "start": 1}, {"pid": "2", "start": 1}, {"pid": 1 << 40, "start": 1}):
        assert Process.from_json(nonsense) is None


def test_only_the_process_that_is_meant_is_ended() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as child:
        found = Process.of(child.pid)
        assert found is not None
        found._replace(start=found.start - 1).end()  # another process that had the pid before
        assert found.is_alive()
        found.end(grace=1000)
        assert child.wait() == -15
    assert not found.is_alive()
    found.end()  # safe to repeat


def test_a_process_that_ignores_a_request_is_killed() -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        found = Process.of(child.pid)
        assert found is not None
        found.end(grace=0.01)
        assert child.wait() == -9


def test_processes_are_found_by_their_command() -> None:
    seconds = f"86400.{os.getpid()}7"
    with subprocess.Popen(["sleep", seconds]) as child:
        while not list(process_id.with_command(["sleep", seconds])):
            time.sleep(0.01)  # the kernel shows the arguments a moment after exec has succeeded
        found = [list(process_id.with_command(["sleep", each])) for each in (seconds, seconds[:-1])]
        child.kill()
    assert [[process.pid for process in each] for each in found] == [[child.pid], []]


@pytest.mark.parametrize(("changed", "found"), [
    ({}, True),
    ({"cmdline": b"/usr/bin/wireguard-go\0-f\0mig-00010203\0"}, True),
    ({"cmdline": b"wireguard-go\0-f\0mig-00010204\0"}, False),
    ({"status": b"Name:\tUid: 0\nUid:\t65534\t%d\t%d\t%d\n" % ((os.geteuid(),) * 3)}, False),  # another user's
    ({"exe": "other"}, False),  # another program, under that name
    ({"ns/pid": "pid:[2]"}, False),  # of a container's root, whose files may be the host's
    ({"exe": "wireguard-go (deleted)"}, True),  # its file was replaced by an upgrade
    ({"exe": "wireguard-go (deleted)", "ns/mnt": "mnt:[2]"}, False),
    ({"exe": "own/wireguard-go (deleted)"}, False),
])  # fmt: skip
def test_only_a_real_one_of_ours_is_found_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         changed: dict[str, Any], found: bool) -> None:
    folder = tmp_path / "bin"
    (folder / "own").mkdir(parents=True)
    for name in ("wireguard-go", "other", "wireguard-go (deleted)", "own/wireguard-go (deleted)"):
        (folder / name).touch()
    monkeypatch.setattr(process_id, "PROC", tmp_path / "proc")
    monkeypatch.setitem(process_id.ENVIRONMENT, "PATH", f"/no/such/folder:{folder}")
    process = {
        "cmdline": b"wireguard-go\0-f\0mig-00010203\0", "status": b"Name:\tx\nUid:\t%d\t9\t9\t9\n" % os.geteuid(),
        "exe": "wireguard-go", "ns/pid": "pid:[1]", "ns/mnt": "mnt:[1]", "stat": b"17 (x) S" + b" 0" * 18 + b" 4 0",
    }
    for pid, files in (("17", process | changed), ("self", {"ns/pid": "pid:[1]", "ns/mnt": "mnt:[1]"})):
        for name, content in files.items():
            path = tmp_path / "proc" / pid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(folder / content if name == "exe" else content)
    read, honest = [], Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        read.append(path.name)
        return honest(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert list(process_id.with_command(["wireguard-go", "-f", "mig-00010203"])) == ([Process(17, 4)] if found else [])
    stranger = "status" in changed or "ns/pid" in changed
    assert ("cmdline" in read) is not stranger, "who reads a stranger's arguments waits as long as he likes"


def test_programs() -> None:
    assert process_id.run(["cat"], given="text") == "text"
    with pytest.raises(ProgramFailed, match="false: exit status 1: no output"):
        process_id.run(["false"])
    with pytest.raises(ProgramFailed, match=r"sleep infinity took more than 0\.1 s"):
        process_id.run(["sleep", "infinity"], limit=0.1)
    with pytest.raises(ProgramFailed, match="not installed"):
        process_id.run(["no-such-program-at-all"])
