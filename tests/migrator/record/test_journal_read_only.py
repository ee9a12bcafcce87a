# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's file system has become read-only: what stands still is given back by what can be read there.

On a tmpfs of a mount namespace of its own. Whoever has files open for writing keeps that from being mounted read-only:
what such a one meets tests/stages/test_read_only.py shows.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.migrator.record.journal_commands import BEGIN, ENDED, KILLED

# From `again` on it can be written.
MOUNTED = """
def mount(*words):
    subprocess.run(["mount", *words], check=True)

def again():
    mount("-o", "remount,rw", folder)
"""
WHERE = 'mount -t tmpfs none "$1"; "$2" -c "$3" "$1"; mount -o remount,ro "$1"; exec "$2" -c "$4" "$1"'


def where_nothing_can_be_written(tmp_path: Path, before: str, code: str) -> None:
    """What `before` says is done by another process before that."""
    (tmp_path / "var").mkdir()
    helpers = "\n".join((f"BEGIN = {BEGIN!r}", BEGIN, MOUNTED))
    script = "\n".join((helpers, textwrap.dedent(code)))
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", WHERE, "sh",
                           tmp_path / "var", sys.executable, f"{helpers}\nsaid({before!r})", script],
                          cwd=Path(__file__).parents[3], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# As ext4 has it that has become so by an error (6.15 and later): nothing but an open for writing tells.
UNTOLD = """
from types import SimpleNamespace
os.statvfs = lambda path: SimpleNamespace(f_flag=0)
"""


@pytest.mark.parametrize("told", ["", UNTOLD])
@pytest.mark.parametrize("before", [KILLED, ENDED])
def test_it_is_read_and_written_again_once_that_can_be(tmp_path: Path, before: str, told: str) -> None:
    """What is in the log alone counts, as a killed one has left it."""
    where_nothing_can_be_written(tmp_path, before, told + textwrap.dedent("""
        assert said(READ) == ["dumping"]
        with Journal(path) as journal, Journal(path) as second:
            migration = found(journal)
            assert migration.state == found(second).state == "dumping"
            assert [each.step for each in migration.events()][-1] == "freeze"
            assert refused(lambda: migration.move(Event.ROLL_BACK)) and refused(lambda: found(second).note("x"))
            with migration.step("thaw", must_be_recorded=False):
                pass
            assert refused(lambda: migration.move(Event.ROLL_BACK))
            assert migration.state == found(journal).state == "dumping" and len(migration.events()) == 3
            again()
            migration.move(Event.ROLL_BACK)
            assert said(READ) == ["rolling-back"] and found(second).state == "rolling-back"
        """))


def test_beside_one_who_can_write(tmp_path: Path) -> None:
    """Through another mount; what he writes is seen."""
    where_nothing_can_be_written(tmp_path, ENDED, """
        again()
        shown = folder.parent / "shown"
        shown.mkdir()
        mount("--bind", folder, shown)
        mount("-o", "remount,bind,ro", shown)
        writer = subprocess.Popen([sys.executable, "-c", BEGIN + textwrap.dedent('''
            with Journal(path) as journal:
                found(journal).move(Event.ROLL_BACK)
                print("done", flush=True)
                input()
            '''), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "done\\n"
        with Journal(shown / path.name) as journal:
            assert found(journal).state == "rolling-back"
            assert refused(lambda: found(journal).move(Event.ROLLED_BACK))
        writer.communicate("\\n")
        with Journal(shown / path.name) as journal:
            assert found(journal).state == "rolling-back"
        """)


def test_the_watchdog_sees_whether_it_is_to_be_thawed(tmp_path: Path) -> None:
    where_nothing_can_be_written(
        tmp_path, "with Journal(path) as journal: dumping(journal).note('attempt', attempt=1)", """
        from migrator.copies.thawing import Frozen
        from migrator.copies.watchdog import Task, Watch
        from migrator.record.detail import Still
        still = Still(cgroup="/nowhere", pid=1)
        task = Task(Frozen.on_record("0badc0de", "web", Path("/pool"), still), 1, (), 60.0, str(path))
        assert Watch(task, lambda wait: "", lambda: 0.0, print)._must_run(untouched=False)
        """)
