# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination answers, asked directly: in order, out of order, and by a source that lies."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stages
from migrator.config import container_config
from migrator.errors import MigratorError, UsageError
from migrator.errors.connection import ProtocolError
from migrator.errors.containers import AlreadyMigrating, AlreadyRuns, ContainerExists, InvalidName, NoMigration
from migrator.errors.data import NoSpace
from migrator.errors.memory import DumpRefused
from migrator.host import btrfs
from migrator.record.states import Event, Owner, Role, State
from migrator.remote.answering import kept_config
from tests.effort import tries
from tests.stages.answering import ID, UUID, Destination, arrives, at_the_dump, pool, there  # noqa: F401 -- fixtures


def test_a_migration_begins(there: Destination) -> None:
    assert there.ask("state") == {"state": None, "owner": None, "ticket": "", "images": False}
    begun = there.ask("begin")
    assert begun == {"state": State.RECEIVING, "disk_bytes": 1000, "subvolumes": [], "ticket": begun["ticket"]}
    assert there.ask("state") == {"state": State.RECEIVING, "owner": Owner.SOURCE, "ticket": begun["ticket"],
                                  "images": False}
    assert there.layout.spool.is_dir()
    carried, bridges = kept_config(there.layout)
    assert (carried.text, carried.includes, bridges) == ("lxc.uts.name = web\n", {}, {})
    assert there.ask("begin")["state"] == State.RECEIVING  # asked again after the answer was lost
    assert len(there.journal.all()) == 1


def test_one_migration_of_a_container_at_a_time(there: Destination) -> None:
    there.ask("begin")
    with pytest.raises(AlreadyMigrating, match=f"migration {ID}"):
        there.ask("begin", id="00000001")
    there.ask("abandon")
    there.ask("begin", id="00000001")


@pytest.mark.parametrize("config", [None, "lxc.uts.name = another\n"])
def test_a_container_that_lives_there_is_not_touched(there: Destination, config: str | None) -> None:
    there.layout.container.mkdir()
    if config:
        (there.layout.container / "config").write_text(config)
    with pytest.raises(ContainerExists):
        there.ask("begin")
    assert there.state is None
    assert not there.layout.folder.exists()


@pytest.mark.parametrize(("source_name", "origin", "taken"), [
    ("web", "00000002", True),  # under the same name every fenced copy counts
    ("shop", "00000001", True),  # the container that has left this copy comes back under its old name
    ("shop", "00000002", False),  # another container's copy
])
def test_whose_fenced_copy_gives_way(there: Destination, source_name: str, origin: str, taken: bool) -> None:
    there.layout.container.mkdir()
    container_config.fence(there.layout.container, "lxc.uts.name = web\n", "00000003", "it has moved")
    went = there.journal.create(id="00000003", role=Role.SOURCE, name="web", lxcpath=there.pool, peer="hosta",
                                event=Event.SEND, origin="00000001")
    went.move(Event.ROLL_BACK)  # however it ended
    went.move(Event.ROLLED_BACK)
    asked = {"source_name": source_name, "origin": origin}
    if taken:
        there.ask("begin", **asked)
        there.ask("begin", **asked)
        migration = there.journal.by_id(ID, Role.DESTINATION)
        assert migration and migration.other_name == source_name and migration.begun.origin == origin
    else:
        with pytest.raises(ContainerExists):
            there.ask("begin", **asked)


@pytest.mark.parametrize(("moves", "recorded"), [
    (["00000002", "00000003"], ["00000002", "00000003"]),
    ([], []),
    ([f"{number:08x}" for number in range(1000)], [f"{number:08x}" for number in range(900, 1000)]),
    (None, None),  # an older version does not say it
])
def test_by_which_moves_it_has_come_is_recorded(there: Destination, moves: object, recorded: list[str] | None) -> None:
    with pytest.raises(InvalidName):
        there.ask("begin", moves=["00000002", "../x"])
    assert there.state is None
    there.ask("begin", **{} if moves is None else {"moves": moves})
    migration = there.journal.by_id(ID, Role.DESTINATION)
    assert migration and migration.begun.moves == recorded


def test_space_is_looked_at_first(there: Destination) -> None:
    with pytest.raises(NoSpace):
        there.ask("begin", disk_bytes=1 << 60)
    assert there.state is None
    assert list(there.pool.iterdir()) == []


def test_of_a_disk_that_has_arrived_in_part_only_the_rest_must_fit(there: Destination) -> None:
    there.ask("begin")
    disk = btrfs.free_bytes(there.pool) + (1 << 40)  # others may free some meanwhile
    for one_shot in (True, False):
        with pytest.raises(NoSpace):
            there.ask("begin", disk_bytes=disk, one_shot=one_shot)
    with (there.layout.spool / "disk-1").open("wb") as file:
        file.truncate(disk - 1000)
    there.ask("begin", disk_bytes=disk, one_shot=True)
    with pytest.raises(NoSpace):  # it will be imported only later
        there.ask("begin", disk_bytes=disk, one_shot=False)


def test_what_has_not_arrived_is_not_received(there: Destination) -> None:
    there.ask("begin")
    with pytest.raises(UsageError, match="not complete"):
        there.ask("received")
    assert there.state is State.RECEIVING
    with pytest.raises(UsageError, match="does not follow"):
        there.ask("transfer", kind="disk", round=3, files=[])


@pytest.mark.parametrize("op", ["received", "dump-begin", "dump-drop", "own", "running", "finish"])
def test_nobody_answers_for_a_migration_that_never_began(there: Destination, op: str) -> None:
    with pytest.raises(NoMigration):
        there.ask(op)


def test_data_of_an_unknown_kind(there: Destination) -> None:
    with pytest.raises(ProtocolError, match="unknown kind"):
        there.ask("transfer", kind="keys", files=[])


# --- the token ------------------------------------------------------------------------------------------------


def test_the_token_is_taken_only_with_a_complete_dump(there: Destination) -> None:
    there.ask("begin")
    for events in ((), (Event.RECEIVED, Event.IMPORT, Event.IMPORTED), (Event.RECEIVE_DUMP,)):
        there.take(*events)
        with pytest.raises(MigratorError):
            there.ask("own")
        assert there.ask("state")["owner"] == Owner.SOURCE


def test_an_offer_is_taken_once_and_answered_again(there: Destination) -> None:
    at_the_dump(there)
    arrives(there)
    assert there.ask("own") == there.ask("own") == {"state": State.OWNED}
    with pytest.raises(UsageError, match="with dump 1"):
        there.ask("own", attempt=2)
    assert there.state is State.OWNED
    with pytest.raises(UsageError, match="not newer"):
        there.ask("dump-begin")
    assert there.ask("dump-drop")["state"] == State.OWNED
    assert there.layout.images()


def test_a_late_offer_of_an_earlier_dump_takes_nothing(there: Destination) -> None:
    """The source has thawed since and dumps anew: to take the token now would make two owners."""
    at_the_dump(there)
    there.ask("dump-drop")
    there.ask("dump-begin", attempt=2)
    arrives(there)
    with pytest.raises(DumpRefused, match="dump 1"):
        there.ask("own")
    there.ask("dump-drop")  # that is late too
    assert there.state is State.RECEIVING_DUMP
    for kind in ("increment", "images"):
        with pytest.raises(UsageError, match="does not expect"):
            there.ask("transfer", kind=kind, files=[])
    assert there.ask("own", attempt=2)["state"] == State.OWNED


def test_a_refusal_holds_when_the_offer_comes_again(there: Destination) -> None:
    at_the_dump(there)
    with pytest.raises(DumpRefused, match="not arrived completely"):
        there.ask("own")
    assert there.state is State.IMPORTED, "recorded before it was said"
    arrives(there)
    with pytest.raises(DumpRefused):
        there.ask("own")
    with pytest.raises(DumpRefused):  # of a dump whose beginning never arrived
        there.ask("own", attempt=5)
    with pytest.raises(UsageError, match="not newer"):
        there.ask("dump-begin", attempt=5)
    assert there.ask("state")["owner"] == Owner.SOURCE


@pytest.mark.parametrize("memory", [False, True])
def test_without_memory_the_disk_is_all_that_must_have_arrived(there: Destination, memory: bool) -> None:
    there.ask("begin", memory=True)
    there.imported()
    there.ask("dump-begin", memory=memory)  # it may have been chosen since
    if not memory:
        with pytest.raises(UsageError, match="no memory"):
            there.ask("transfer", kind="images", files=[])
    arrives(there)
    there.layout.drop_images()
    if memory:
        with pytest.raises(DumpRefused, match="not arrived completely"):
            there.ask("own")
    else:
        assert there.ask("own") == {"state": State.OWNED}


def test_an_offer_is_taken_after_a_crash_between_two_records(there: Destination) -> None:
    at_the_dump(there)
    arrives(there)
    there.take(Event.DUMP_RECEIVED)
    assert there.ask("own")["state"] == State.OWNED


def test_a_dump_that_is_not_expected_is_refused(there: Destination) -> None:
    there.ask("begin")
    for kind in ("increment", "images"):
        with pytest.raises(UsageError, match="does not expect"):
            there.ask("transfer", kind=kind, files=[])


def test_an_abandoned_attempt_never_comes_back(there: Destination) -> None:
    ticket = there.ask("begin")["ticket"]
    expected = {"state": State.ABANDONED, "kept": "", "known": True, "ticket": ticket}
    assert there.ask("abandon") == expected
    assert list(there.pool.iterdir()) == []
    assert there.ask("abandon") == expected
    for op in ("begin", "received", "dump-begin", "own", "finish", "running"):
        with pytest.raises((MigratorError, AssertionError)):
            there.ask(op)
        assert there.state is State.ABANDONED


def test_an_attempt_can_be_abandoned_before_it_was_heard_of(there: Destination) -> None:
    """The message that would have begun it may still be on its way."""
    for _ in range(2):
        assert there.ask("abandon") == {"state": State.ABANDONED, "kept": "", "known": False, "ticket": ""}
    with pytest.raises(UsageError, match="has ended"):
        there.ask("begin")


def test_what_runs_is_not_abandoned(there: Destination) -> None:
    ticket = there.ask("begin")["ticket"]
    there.take(Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
               Event.RESTORE, Event.RESTORED)
    with pytest.raises(AlreadyRuns):
        there.ask("abandon")
    assert there.ask("state") == {"state": State.RESTORED, "owner": Owner.DESTINATION, "ticket": ticket,
                                  "images": False}


# --- a source that lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [
    ("id", "../../../etc"), ("id", ""), ("id", None), ("name", "../x"), ("name", "a/b"), ("name", ""),
    ("lxcpath", "pool"), ("lxcpath", "/pool/../etc"), ("source_lxcpath", "relative"),
    ("bridges", {"br0; reboot": "br1"}), ("bridges", {"br0": "../x"}),
])
def test_names_from_the_wire_are_checked(there: Destination, field: str, value: object) -> None:
    before = everything(there.pool.parent)
    with pytest.raises(InvalidName if value is not None else ProtocolError):
        there.ask("begin", **{field: value})
    # A configuration that makes no sense is noticed late, and leaves an empty spool; anything else leaves nothing.
    made = everything(there.pool.parent) - before
    assert all(path.is_relative_to(there.layout.folder.parent) or "run" in path.parts for path in made)


@pytest.mark.parametrize("fields", [
    {"includes": []}, {"bridges": "br0"}, {"config": "#" * (2 << 20)},
    {"includes": dict.fromkeys(map(str, range(99)), "")},
])
def test_a_configuration_that_makes_no_sense(there: Destination, fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        there.ask("begin", **fields)


def everything(folder: Path) -> set[Path]:
    return {Path(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files)
            if not name.startswith("journal.db")}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["../x", "/etc", "/", "a/b", ID, UUID, "web", "hosta\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)
keys = st.sampled_from([
    "id", "name", "lxcpath", "source_lxcpath", "config", "includes", "bridges", "disk_bytes", "kind", "mapped_root",
    "round", "uuid", "bytes", "files", "source_host", "destination", "query", "memory",
])
# Besides our own errors, what `serve` answers as an internal one.
COMPLAINTS = (MigratorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, AssertionError)
OPS = sorted({"transfer", *(each.op for stage in stages.load_all() for each in getattr(stage, "HANDLERS", ()))}
             - {"facts"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=tries(100, 2000))
@given(st.sampled_from(OPS), st.dictionaries(keys, values, max_size=4))
def test_nothing_is_made_outside_its_place(there: Destination, op: str, fields: dict[str, Any]) -> None:
    """Whatever is asked for: an answer or an error, and files only where migrations keep theirs."""
    fields = fields | {"lxcpath": fields.get("lxcpath", str(there.pool))}
    if isinstance(fields["lxcpath"], str) and Path(fields["lxcpath"]).is_absolute():
        fields["lxcpath"] = str(there.pool)  # any absolute path is the source's good right; here it must be this one
    with contextlib.suppress(*COMPLAINTS):
        there.ask(op, **fields)
    top = there.pool.parent
    allowed = (top / "pool" / ".migrator", top / "run", top / "shm")
    for path in everything(top) - {top / "pool"}:
        assert any(path.is_relative_to(place) for place in allowed), f"{op} {fields} made {path}"


def test_every_answer_has_a_name_of_its_own() -> None:
    found: dict[str, Callable[..., object]] = {}
    for stage in stages.load_all():
        for op, handler in getattr(stage, "HANDLERS", {}).items():
            assert op not in found
            found[op] = handler
    assert "transfer" not in found
