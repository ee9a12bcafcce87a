# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal keeps what it has been told, whatever happens to who told it."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import FrameType

import pytest

from migrator.base import names
from migrator.errors.data import NoSpace
from migrator.errors.this_host import JournalBroken
from migrator.record import journal as journal_module
from migrator.record import journal_file
from migrator.record.journal import KEPT, AlreadyRecorded, Journal, Migration
from migrator.record.journal_file import SCHEMA_VERSION, JournalFile
from migrator.record.states import Event, IllegalMove, Owner, Role, State
from tests.effort import tries

POOL = Path("/pool")
PATIENCE = 600.0  # seconds: the kernel's locks are not fair, and a disk may be slow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as opened:
        yield opened


def create(journal: Journal, id: str = "0badc0de", role: Role = Role.SOURCE, name: str = "web") -> Migration:
    event = Event.SEND if role is Role.SOURCE else Event.RECEIVE
    return journal.create(id=id, role=role, name=name, lxcpath=POOL, peer="hostb", event=event, rounds=[])


def test_how_much_is_recorded_of_one_migration(journal: Journal) -> None:
    """On one host alone it can be its source and its destination."""
    one, *others = create(journal), create(journal, role=Role.DESTINATION), create(journal, "feedface", name="db")
    lengths = [each.length() for each in (one, *others)]
    one.note("figures", kept=["x" * 1000])
    count, size = one.length()
    assert (count, size >= 1000 + lengths[0][1]) == (lengths[0][0] + 1, True)
    assert [each.length() for each in others] == lengths[1:]


def test_what_was_written_is_there_after_reopening(path: Path) -> None:
    with Journal(path) as journal:
        migration = create(journal)
        migration.move(Event.SENT, rounds=[{"bytes": 5}])
        migration.move(Event.FREEZE, frozen_at=12.5)
    with Journal(path) as journal:
        found = journal.latest("web", POOL)
        assert found is not None
        assert (found.state, found.owner, found.peer, found.lxcpath) == (State.DUMPING, Owner.SOURCE, "hostb", POOL)
        assert found.given() == {"rounds": [{"bytes": 5}], "frozen_at": 12.5}
        assert [event.step for event in found.events()] == ["send", "sent", "freeze"]
        assert [event.detail["state"] for event in found.events()] == ["preparing", "prepared", "dumping"]


def test_many_open_a_new_one_at_once(tmp_path: Path) -> None:
    """The first commands on a host may be two that were started together."""
    forks = multiprocessing.get_context("fork")
    for attempt in range(tries(2, 20)):
        path = tmp_path / str(attempt) / "journal.db"
        path.parent.mkdir()
        together = forks.Barrier(8)
        children = [forks.Process(target=begin, args=(path, together, number)) for number in range(8)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * 8
        with Journal(path) as journal:
            assert len(journal.all()) == 8


def begin(path: Path, together: Barrier, number: int) -> None:
    """What one of several does at the same moment."""
    together.wait()
    with Journal(path, PATIENCE) as journal:
        create(journal, f"{number:08x}")


def test_only_root_can_read_it(journal: Journal, path: Path) -> None:
    create(journal)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_move_that_the_table_does_not_have_changes_nothing(journal: Journal) -> None:
    migration = create(journal)
    with pytest.raises(IllegalMove):
        migration.move(Event.TAKEN, why="lost")
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and found.state is migration.state is State.PREPARING
    assert found.handover.why == migration.handover.why == ""
    assert len(found.events()) == 1


def test_the_owner_is_known_again_once_a_rollback_is_recorded(journal: Journal) -> None:
    """It is recorded only with the destination's word, and that never has to be had again."""
    migration = create(journal)
    for event in (Event.SENT, Event.FREEZE, Event.OFFER):
        migration.move(event)
    assert migration.owner is Owner.UNKNOWN
    for _ in range(2):
        migration.move(Event.ROLL_BACK)
        found = journal.by_id(migration.id, Role.SOURCE)
        assert found and found.owner is Owner.SOURCE
    migration.move(Event.ROLLED_BACK)
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and found.owner is Owner.SOURCE


def test_steps_are_recorded_with_their_end(journal: Journal) -> None:
    migration = create(journal)
    with migration.step("snapshot") as outcome:
        outcome.bytes = 3
    with pytest.raises(NoSpace), migration.step("send"):
        raise NoSpace(where="/pool", free="1 MiB", needed="2 MiB", what="this")
    told = [(event.step, event.phase) for event in migration.events()[1:]]
    assert told == [("snapshot", "begin"), ("snapshot", "done"), ("send", "begin"), ("send", "failed")]
    assert migration.events()[2].detail == {"bytes": 3}
    assert "/pool has 1 MiB free" in migration.events()[4].detail["reason"]


def test_what_the_other_host_has_recorded_again_and_again_takes_one_line(journal: Journal) -> None:
    """Only in a row: what has happened in between stays where it was."""
    migration = create(journal)
    for attempt in range(1, 4):
        migration.note("refused", anew=True, attempt=attempt)
    migration.note("figures", changed=1)
    for attempt in range(4, 6):
        migration.note("refused", anew=True, attempt=attempt)
    migration.note("refused", attempt=6)
    assert [(event.step, event.detail.get("attempt")) for event in migration.events()[1:]] == [
        ("refused", 3), ("figures", None), ("refused", 5), ("refused", 6)]


@pytest.mark.parametrize("full_at", ["begin", "done"])
def test_what_a_step_lets_run_is_not_ended_for_want_of_a_record(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                                                full_at: str) -> None:
    """But it is not begun where that cannot be recorded."""
    migration = create(journal)

    def event(_self: Migration, _step: str, phase: str, _detail: object) -> None:
        if phase == full_at:
            raise JournalBroken(path=journal.path, reason="database or disk is full")

    monkeypatch.setattr(Migration, "_event", event)
    let_run = []
    refused = contextlib.nullcontext() if full_at == "done" else pytest.raises(JournalBroken)
    with refused, migration.step("restore", end_must_be=False):
        let_run.append(True)
    assert bool(let_run) is (full_at == "done")


def test_finding_migrations(journal: Journal) -> None:
    first = create(journal, "00000001")
    second = create(journal, "00000002")
    back = create(journal, "00000002", Role.DESTINATION)  # both roles of one id: one host moves to itself
    other = create(journal, "00000003", name="db")
    latest = journal.latest("web", POOL, Role.SOURCE)
    assert latest and latest.id == second.id
    newest = journal.latest("web", POOL)
    assert newest and newest.role is Role.DESTINATION
    assert journal.latest("web", Path("/elsewhere")) is None
    assert journal.latest("we", POOL) is None
    assert [m.id for m in journal.all()] == [first.id, second.id, back.id, other.id]
    assert [m.id for m in journal.all("db")] == [other.id]
    journal.forget(second)
    assert [(m.id, m.role) for m in journal.all("web")] == [(first.id, Role.SOURCE), (second.id, Role.DESTINATION)]
    assert second.events() == []
    assert back.events() != []


SUCCESS = (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED)
FAILURE = (Event.ROLL_BACK, Event.ROLLED_BACK)


def test_order_does_not_hang_on_the_clock(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is behind after a boot without a battery, or was set back by hand."""
    made = []
    for number, now in enumerate((2e9, 1e9, 1.5e9)):
        monkeypatch.setattr("migrator.record.journal.time.time", lambda now=now: now)
        made.append(create(journal, id=f"0000000{number}"))
        made[-1].move(Event.ROLL_BACK)
        made[-1].move(Event.ROLLED_BACK)
    found = journal.latest("web", POOL)
    assert found and found.id == "00000002"
    assert [each.id for each in journal.all()] == ["00000000", "00000001", "00000002"]
    for number in range(3, KEPT + 1):
        create(journal, id=f"{number:08x}").move(Event.ROLL_BACK)
    assert [each.id for each in journal.all()][:2] == ["00000000", "00000001"], "nothing is forgotten too early"


def test_what_has_ended_long_ago_is_forgotten(journal: Journal, path: Path) -> None:
    """However often a container moves; but not what is under way, other containers', or the last that succeeded."""
    under_way, other = create(journal, "0000aaaa"), create(journal, "0000bbbb", name="db")
    for event in FAILURE:
        other.move(event)
    sizes = []
    for number in range(3 * KEPT):
        migration = create(journal, f"{number:08x}")
        for event in SUCCESS if number == KEPT else FAILURE:
            migration.move(event, why="x" * 2000)
        sizes.append(path.stat().st_size + path.with_name("journal.db-wal").stat().st_size)
    create(journal, "0000cccc")
    numbers = [KEPT, *range(2 * KEPT, 3 * KEPT)]
    assert [m.id for m in journal.all("web")] == [under_way.id, *(f"{number:08x}" for number in numbers), "0000cccc"]
    assert journal.all("db")[0].events()
    (events,) = journal.rows("SELECT count(DISTINCT id) FROM events")
    assert events[0] == len(journal.all())
    assert max(sizes[2 * KEPT :]) <= 1.2 * sizes[2 * KEPT - 1]


def test_what_a_caller_has_ended_makes_no_other_callers_forgotten(journal: Journal) -> None:
    """Root's own, and those of keys and peers: each has its own last ones."""
    def ended(id: str, **caller: str) -> None:
        migration = journal.create(id=id, role=Role.DESTINATION, name="web", lxcpath=POOL, peer="hosta",
                                   event=Event.RECEIVE, **caller)
        migration.move(Event.ABANDON)
        migration.move(Event.ABANDONED)

    ended("0000aaaa", caller="ssh")
    ended("0000bbbb")
    for number in range(2 * KEPT):
        ended(f"{number:08x}", caller="peer:q34v")
    assert [m.id for m in journal.all()][:3] == ["0000aaaa", "0000bbbb", f"{KEPT - 1:08x}"]


def test_it_is_closed_at_the_blocks_end(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.rows("SELECT 1")
    with pytest.raises(JournalBroken, match="closed"):
        journal.rows("SELECT 1")


def test_what_has_never_begun_makes_way_for_its_own_kind_alone(journal: Journal) -> None:
    """Recorded as given up, for a container of that name; the newest of each container stay."""
    def never(id: str, name: str = "web") -> None:
        made = journal.never_begin(id=id, name=name, lxcpath=POOL, peer="hosta", caller="ssh")
        assert made.ended and made.state is State.ABANDONED and made.never_began

    never("0000aaaa", "db")
    for number in range(KEPT + 2):
        never(f"{number:08x}")
    known = [id for (id,) in journal.rows("SELECT id FROM migrations ORDER BY rowid")]
    assert known == ["0000aaaa", *(f"{number:08x}" for number in range(2, KEPT + 2))]
    assert journal.all() == []


def test_a_new_id_is_one_that_nothing_has(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either direction."""
    create(journal, "0000aaaa")
    create(journal, "0000bbbb", Role.DESTINATION)
    ids = iter(["0000aaaa", "0000bbbb", "0000cccc"])
    monkeypatch.setattr(names, "new_migration_id", lambda: next(ids))
    assert journal.unused_id() == "0000cccc"


def test_the_same_migration_cannot_begin_twice(journal: Journal) -> None:
    create(journal)
    with pytest.raises(AlreadyRecorded):
        create(journal)
    assert len(journal.all()) == 1


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(2000)])
def test_a_broken_file_is_named_and_kept(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(JournalBroken) as caught:
        Journal(path)
    assert str(path) in str(caught.value)
    assert str(path) in caught.value.hint
    assert path.read_bytes() == content


def test_a_newer_schema_is_refused(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(JournalBroken, match=f"schema {SCHEMA_VERSION + 1}"):
        Journal(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalBroken):
        Journal(tmp_path / "file" / "journal.db")


# --- processes that are killed, and that write at the same time -----------------------------------------------

WRITER = """
import sys
from pathlib import Path
from migrator.record.journal import Journal
from migrator.record.states import Event, Role

name = sys.argv[2]
with Journal(Path(sys.argv[1]), float(sys.argv[4])) as journal:
    migration = journal.create(id=name, role=Role.SOURCE, name=name, lxcpath=Path("/pool"), peer="hostb",
                               event=Event.SEND, attempt=0)
    for number in range(1, int(sys.argv[3]) + 1):
        migration.move(Event.SENT if number % 2 else Event.SEND, attempt=number)
        print(number, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count), str(PATIENCE)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def test_a_writer_that_is_killed_leaves_whole_records(path: Path) -> None:
    dice = random.Random(1)
    for attempt in range(tries(3, 20)):
        name = f"{attempt:08x}"
        with writer(path, name, 1_000_000) as process:
            assert process.stdout
            assert process.stdout.readline() == "1\n"
            before = [int(process.stdout.readline()) for _ in range(dice.randrange(20))]
            process.send_signal(signal.SIGKILL)
            told = [1, *before, *(int(line) for line in process.stdout if line.endswith("\n"))]
        with Journal(path) as journal:
            found = journal.by_id(name, Role.SOURCE)
            assert found
            # Every record that was reported is there, and at most the one after it.
            assert told[-1] <= found.handover.attempt <= told[-1] + 1
            # State, details and events are of the same moment.
            events = found.events()
            assert len(events) == found.handover.attempt + 1
            assert events[-1].detail["attempt"] == found.handover.attempt
            assert events[-1].detail["state"] == found.state
            assert found.state is (State.PREPARED if found.handover.attempt % 2 else State.PREPARING)


def test_a_writer_that_dies_inside_a_transaction_has_written_nothing(journal: Journal, path: Path) -> None:
    migration = create(journal)
    child = os.fork()
    if child == 0:
        with Journal(path).transaction() as db:  # a connection must not be carried over a fork
            db.execute("UPDATE migrations SET state = 'finished'")
            db.execute("DELETE FROM events")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and found.state is State.PREPARING
    assert len(found.events()) == 1
    migration.move(Event.SENT)  # and nothing is locked


def test_several_writers_at_once(path: Path) -> None:
    Journal(path).close()
    names = [f"{number:08x}" for number in range(4)]
    running = [writer(path, name, 15) for name in names]
    assert [process.wait() for process in running] == [0] * 4
    for process in running:
        assert process.stdout
        process.stdout.close()
    with Journal(path) as journal:
        for name in names:
            found = journal.by_id(name, Role.SOURCE)
            assert found and found.handover.attempt == 15
            assert len(found.events()) == 16


def alone_only(file: JournalFile, *, alone: bool,
               honest: Callable[..., sqlite3.Connection] = JournalFile._connect) -> sqlite3.Connection:
    """Its disk has no room for `-shm`."""
    if not alone:
        full = sqlite3.OperationalError("disk I/O error")
        full.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
        raise full
    return honest(file, alone=True)


CODE = (journal_module.__file__, journal_file.__file__, contextlib.__file__)


class Pressed:
    """A Ctrl-C before the `number`-th line that Python takes in the journal, or in the `with` of it."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Pressed | None:
        if frame.f_code.co_filename not in CODE:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("room", [True, False])
def test_a_ctrl_c_at_any_moment_leaves_no_transaction_open(path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           room: bool) -> None:
    """Afterwards the object knows what everybody else sees, and the next write is made.

    So too without room for what several can have open, where each access opens it.
    """
    if not room:
        monkeypatch.setattr(JournalFile, "_connect", alone_only)
    seen = set()
    for number in itertools.count():
        with Journal(path) as journal, Journal(path) as other:
            migration = create(journal, f"{number:08x}")
            before, kept = sys.gettrace(), None
            sys.settrace(pressed := Pressed(number))
            try:
                migration.move(Event.SENT)
            except KeyboardInterrupt as error:
                kept = error  # as long as it is handled, what it has gone through is not cleared away
            finally:
                sys.settrace(before)
            migration.refresh()
            recorded = other.by_id(migration.id, Role.SOURCE)
            assert recorded and recorded.state is migration.state, number
            seen.add(migration.state)
            with journal.transaction() as db:
                db.execute("UPDATE migrations SET peer = 'root@hostc' WHERE id = ?", (migration.id,))
                kept = None  # noqa: F841 - what was left behind ends only now
            assert other.by_id(migration.id, Role.SOURCE).peer == "root@hostc", number  # type: ignore[union-attr]
            if pressed.left >= 0:
                break
    assert number > 10 and seen == {State.PREPARING, State.PREPARED}


READER = """
import sys
from pathlib import Path
from migrator.record.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    for migration in journal.all():
        print(migration.id, migration.state)
"""


def seen_by_another_process(path: Path) -> list[str]:
    command = [sys.executable, "-c", READER, str(path)]
    return subprocess.check_output(command, stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE).splitlines()


def test_another_process_does_not_take_it_for_unused_after_a_second_one_was_opened_here(path: Path) -> None:
    """As a preflight does in the middle of a migration. `migrator status` would take the write-ahead log away then, and
    what is recorded afterwards would go to a file without a name."""
    with Journal(path) as journal:
        migration = create(journal)
        with Journal(path) as second:
            assert second.latest("web", POOL)
        assert seen_by_another_process(path) == ["0badc0de preparing"]
        migration.move(Event.SENT)
        assert seen_by_another_process(path) == ["0badc0de prepared"]
        with Journal(path):
            migration.move(Event.FREEZE)
        assert seen_by_another_process(path) == ["0badc0de dumping"]
        assert Path(f"{path}-wal").exists()
    assert seen_by_another_process(path) == ["0badc0de dumping"]
