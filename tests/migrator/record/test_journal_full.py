# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's disk is full: what begins then still reads what is recorded, and so can give back what stands still.

On a tmpfs of a mount namespace of its own, which is really full. SQLite shares a database that has a write-ahead log
through a file that it must make beside it, and there is no room for that.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.migrator.record.journal_commands import BEGIN, ENDED, KILLED

NO_INODES = "size=4m,nr_inodes=12"


def on_a_full_disk(tmp_path: Path, before: str, code: str, size: str = "size=512k") -> None:
    """What `before` says is done by another process while there is room; then the disk is filled.

    What one who was killed has left of `-shm` is made anew by the next one, and others may be faster to have its room.
    """
    (tmp_path / "var").mkdir()
    script = "\n".join((f"BEGIN = {BEGIN!r}", BEGIN, f"said({before!r})", "shared.unlink(missing_ok=True)", "full()",
                        textwrap.dedent(code)))
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
                           f'mount -t tmpfs -o {size} none "$1"; shift; exec "$@"', "sh", tmp_path / "var",
                           sys.executable, "-c", script, tmp_path / "var"],
                          cwd=Path(__file__).parents[3], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("before", [KILLED, ENDED])
def test_it_is_read_and_written_again_once_there_is_room(tmp_path: Path, before: str) -> None:
    on_a_full_disk(tmp_path, before, """
        with Journal(path) as journal:
            migration = found(journal)
            assert migration.state == "dumping" and [each.step for each in migration.events()][-1] == "freeze"
            assert refused(lambda: migration.move(Event.ROLL_BACK))
            with migration.step("thaw", must_be_recorded=False):
                pass
            assert migration.state == found(journal).state == "dumping" and len(migration.events()) == 3
            (folder / "filler").unlink()
            migration.move(Event.ROLL_BACK)
            assert said(READ) == ["rolling-back"]
            migration.move(Event.ROLLED_BACK)
        assert said(READ) == ["rolled-back"]
        assert {each.name: each.stat().st_size for each in folder.iterdir() if each != path} == {"journal.db-wal": 0}
        """)


@pytest.mark.parametrize("before", [KILLED, ENDED])
def test_nobody_is_kept_from_it_by_one_who_has_it_open(tmp_path: Path, before: str) -> None:
    """As one does who waits for long. What that one cannot write another one cannot either, until there is room."""
    on_a_full_disk(tmp_path, before, """
        with Journal(path) as journal, Journal(path) as second:
            assert found(journal).state == found(second).state == "dumping"
            readers = [command(READ) for _ in range(4)]
            assert [each.communicate()[0] for each in readers] == ["dumping\\n"] * 4
            (folder / "filler").unlink()
            assert said("with Journal(path) as journal: found(journal).move(Event.ROLL_BACK); print(1)") == ["1"]
            assert found(journal).state == found(second).state == "rolling-back"
        """)


@pytest.mark.parametrize("before", [KILLED, ENDED])
def test_it_is_read_where_no_file_can_be_made(tmp_path: Path, before: str) -> None:
    """No inode is free: again and again, and it is written too, as there is room for that."""
    on_a_full_disk(tmp_path, before, """
        no_inodes()
        for _ in range(3):
            assert said(READ) == ["dumping"]
        with Journal(path) as journal:
            found(journal).move(Event.ROLL_BACK)
            assert found(journal).state == "rolling-back"
        assert said(READ) == ["rolling-back"]
        """, NO_INODES)


def test_several_write_at_once(tmp_path: Path) -> None:
    """Each access has it alone, and each has its turn."""
    on_a_full_disk(tmp_path, ENDED, """
        no_inodes()
        writers = [command(f'''
        with Journal(path, 600.0) as journal:
            found(journal).note("{number}")
            migration = journal.create(id="{number:08x}", role=Role.SOURCE, name="{number}", lxcpath=folder, peer="b",
                                       event=Event.SEND)
            for each in range(10):
                migration.note("{number}", attempt=each)
        ''') for number in range(4)]
        assert [each.wait() for each in writers] == [0] * 4
        with Journal(path) as journal:
            assert {each.step for each in found(journal).events()} >= set("0123")
            assert [len(each.events()) for each in journal.all() if each.name != "web"] == [11] * 4
        """, NO_INODES)


def test_nothing_is_lost_by_what_cannot_be_written(tmp_path: Path) -> None:
    """Whoever closes it brings the log into the database, for which there may be no room: then the log stays."""
    on_a_full_disk(tmp_path, KILLED, """
        before = (folder / "journal.db-wal").stat().st_size
        assert before > 0
        for _ in range(3):
            assert said(READ) == ["dumping"]
        (folder / "filler").unlink()
        assert said(READ) == ["dumping"]
        """)


def test_one_who_had_it_open_before_goes_on(tmp_path: Path) -> None:
    on_a_full_disk(tmp_path, ENDED, """
        (folder / "filler").unlink()
        with Journal(path) as journal:
            full()
            assert said(READ) == ["dumping"] and found(journal).state == "dumping"
            (folder / "filler").unlink()
            found(journal).move(Event.ROLL_BACK)
            full()
            assert said(READ) == ["rolling-back"]
        """)


def test_none_is_made_there(tmp_path: Path) -> None:
    on_a_full_disk(tmp_path, "pass", """
        assert refused(lambda: Journal(path)) and refused(lambda: Journal(path))
        (folder / "filler").unlink()
        with Journal(path) as journal:
            assert dumping(journal).state == "dumping"
        """)


def test_the_watchdog_sees_whether_it_is_to_be_thawed(tmp_path: Path) -> None:
    on_a_full_disk(tmp_path, "with Journal(path) as journal: dumping(journal).note('attempt', attempt=1)", """
        from migrator.copies.thawing import Frozen
        from migrator.copies.watchdog import Task, Watch
        from migrator.record.detail import Still
        still = Still(cgroup="/nowhere", pid=1)
        task = Task(Frozen.on_record("0badc0de", "web", Path("/pool"), still), 1, (), 60.0, str(path))
        assert Watch(task, lambda wait: "", lambda: 0.0, print)._must_run(untouched=False)
        """)
