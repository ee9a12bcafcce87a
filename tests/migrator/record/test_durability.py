# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal has recorded has survived a power cut before anything follows from it: told by the system calls.

SQLite writes to its log and returns; only fdatasync(2) brings that to the disk. So each record that something is built
on must be synced after its last write and before the next thing that the program does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each word is written to stdout as soon as what it names has returned.
RECORDS = """
import os, sys
from pathlib import Path
from migrator.record.journal import Journal
from migrator.record.states import Event, Role
with Journal(Path(sys.argv[1])) as journal:
    os.write(1, b"open")
    migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=Path("/pool"), peer="hostb",
                               event=Event.SEND)
    os.write(1, b"create")
    migration.move(Event.SENT)
    os.write(1, b"move")
    migration.note("attempt", attempt=1)
    os.write(1, b"note")
    with migration.step("freeze"):
        os.write(1, b"step")
    os.write(1, b"done")
"""
CALL = re.compile(r"(?P<call>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>(, \"(?P<text>[^\"]*)\")?")


@pytest.fixture
def calls(tmp_path: Path) -> dict[str, list[str]]:
    """The calls on the journal's files before each word: `write`, or `sync`."""
    folder = tmp_path / "journal"
    folder.mkdir()
    trace = folder / "trace"
    subprocess.run(["strace", "-f", "-y", "-s", "16", "-e", "trace=write,pwrite64,fsync,fdatasync", "-o", trace,
                    sys.executable, "-c", RECORDS, folder / "journal.db"], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)
    found: dict[str, list[str]] = {}
    since: list[str] = []
    for line in trace.read_text().splitlines():
        call = CALL.search(line)
        if call and "journal.db" in call["path"]:
            since.append("sync" if "sync" in call["call"] else "write")
        elif call and call["fd"] == "1":
            found[call["text"]], since = since, []
    assert list(found) == ["open", "create", "move", "note", "step", "done"]
    return found


@pytest.mark.parametrize("word", ["create", "move", "note"])
def test_what_is_recorded_is_on_disk_before_it_counts(calls: dict[str, list[str]], word: str) -> None:
    assert "write" in calls[word]
    assert calls[word][-1] == "sync", calls[word]


def test_steps_are_only_told(calls: dict[str, list[str]]) -> None:
    """They keep nobody waiting for a disk while a container is frozen; the next record brings them along."""
    assert set(calls["step"]) == {"write"}
    assert set(calls["done"]) == {"write"}


def test_what_was_synced_is_what_another_reader_finds(tmp_path: Path) -> None:
    """A copy of the files as they are after a record, as a power cut would leave them, tells of it."""
    from migrator.record.journal import Journal
    from migrator.record.states import Event, Role, State

    with Journal(tmp_path / "journal.db") as journal:
        migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="hostb",
                                   event=Event.SEND)
        migration.move(Event.SENT)
        cut = tmp_path / "cut"
        cut.mkdir()
        for path in tmp_path.glob("journal.db*"):
            if not path.name.endswith("-shm"):  # is memory, and gone
                (cut / path.name).write_bytes(path.read_bytes())
    with Journal(cut / "journal.db") as journal:
        found = journal.by_id("0badc0de", Role.SOURCE)
        assert found and found.state is State.PREPARED
