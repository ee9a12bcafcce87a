# SPDX-License-Identifier: GPL-2.0-or-later
"""What a record tells is read by its type, and lies on disk as it always has: earlier_journal.sql was written by the
version before records had parts."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from migrator.base.boot_clock import Moment
from migrator.base.process_id import Process
from migrator.errors.this_host import JournalBroken
from migrator.host.network import Port
from migrator.record import detail
from migrator.record.detail import (
    Arrived,
    Begun,
    Consent,
    Copy,
    Data,
    DiskRound,
    Ending,
    Figures,
    Handover,
    Options,
    Still,
    Told,
)
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State

TREE = Path(__file__).parents[3]
CODE = [path for top in ("migrator", "stages") for path in sorted((TREE / top).rglob("*.py"))]
EARLIER = Path(__file__).with_name("earlier_journal.sql")
BOOT = "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11"
LEAVE = Moment(BOOT, 5021.25, 600.0)


def uuid(number: int) -> str:
    return f"0badc0de-0000-4000-8000-{number:012}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def earlier(path: Path) -> Iterator[Journal]:
    with sqlite3.connect(path) as db:
        db.executescript(EARLIER.read_text())
    db.close()
    with Journal(path) as journal:
        yield journal


def by_id(journal: Journal, id_: str, role: Role) -> Migration:
    found = journal.by_id(id_, role)
    assert found
    return found


def on_disk(journal: Journal, migration: Migration) -> str:
    ((text,),) = journal.rows("SELECT detail FROM migrations WHERE id = ? AND role = ?", migration.id, migration.role)
    return str(text)


def change(journal: Journal, migration: Migration, key: str, value: object) -> Migration:
    """As if another program had written it."""
    with journal.transaction() as db:
        db.execute("UPDATE migrations SET detail = json_set(detail, ?, json(?)) WHERE id = ? AND role = ?",
                   (f"$.{key}", json.dumps(value), migration.id, migration.role))
    return by_id(journal, migration.id, migration.role)


def test_on_the_source(earlier: Journal) -> None:
    migration = by_id(earlier, "0badc0de", Role.SOURCE)
    assert migration.state is State.ROLLED_BACK and not migration.owes
    assert migration.begun == Begun(
        destination_host="hostb", destination_fingerprint="3f1c", source_lxcpath="/var/lib/lxc",
        destination_lxcpath="/pool", lxcpath_given=True, other_name="shop", origin="00000001", bridges={"br0": "br1"},
        memory=False, one_shot=True, ticket="7ea",
        options=Options(max_downtime=120.0, max_rounds=5, reconnect=300.0, ignore=("ghost",), stop_timeout=60.0))
    assert migration.consent == Consent(caller="ssh")
    assert migration.data == Data(config_digest="c0ffee", rounds=[
        DiskRound(parent="", uuid=uuid(1), bytes=7340032, full=True, seconds=1.25, wire_bytes=2097152)])
    assert migration.still == Still(
        init=(4711, 440000), boot=BOOT, pid=4711, cgroup="/sys/fs/cgroup/lxc.payload.web",
        ports=[Port("eth0", "veth1", "br0")], dad={"eth0": "1"}, frozen_at=1764000099.5, stopped_at=1764000098.5,
        still_monotonic=4411.5, stop_timeout=60.0, stopping=True, held=True)
    assert migration.handover == Handover(attempt=2, leave=LEAVE, figures=Figures(
        increment=4096, memory=1048576, wire_bytes=65536, dump_seconds=0.21, send_seconds=0.1))
    assert migration.arrived == Arrived()
    assert migration.copy == Copy(rootfs_uuid=uuid(2), changed=4242, gone=True, last_copy=["0badc0de.1"])
    assert migration.ending == Ending(ended_by=(BOOT, 4711, 123456), abandoned=True, forced=True,
                                      forced_at=1764000200.5, forcing=Process(4711, 123456), forgotten_there=True)
    assert by_id(earlier, "0badc0e1", Role.SOURCE).handover.figures == Figures(
        increment=4096, wire_bytes=65536, send_seconds=0.1, stop_seconds=2.5, killed=True)


def test_on_the_destination(earlier: Journal) -> None:
    migration = by_id(earlier, "0badc0de", Role.DESTINATION)
    assert migration.state is State.FINISHED and migration.caller == "ssh:hosta" and migration.other_name == "web"
    assert migration.begun == Begun(
        destination="root@hostb", source_lxcpath="/var/lib/lxc", destination_lxcpath="/pool", other_name="web",
        origin="00000001", moves=["00000001", "0badc0dd"], mapped_root=100000, disk="9c3f5a0012", ticket="7ea")
    assert migration.consent == Consent(caller="ssh:hosta", hooks=False, hooks_fix="add `hooks` to its key",
                                        reaching="")
    assert migration.data == Data(rounds=[DiskRound(uuid=uuid(1))], announced=7340032, on_disk_uuid=uuid(1))
    assert migration.still == Still(dad={"eth0": "1"})
    assert migration.handover == Handover(
        attempt=2, leave=LEAVE, increment_uuid=uuid(3), images="/run/migrator/0badc0de", why="there is room",
        image_files=["core-1.img", "pages-1.img"])
    assert migration.arrived == Arrived(restored_at=1764000150.5, had_stopped=BOOT, hwaddrs=["00:16:3e:00:00:01"],
                                        given_way=True, failed="it has no processes")
    assert migration.copy == Copy(rootfs_uuid=uuid(4))
    assert migration.ending == Ending(ended_by=(BOOT, 4711, 123456), forced=True, forgotten=True)
    given_up = by_id(earlier, "0badc0df", Role.DESTINATION)
    assert given_up.data.on_disk is True and given_up.begun.moves is None
    assert given_up.ending.given_up_here and given_up.ending.source_knows
    assert by_id(earlier, "0badc0e0", Role.DESTINATION).never_began


def test_of_an_older_version_its_first_process_has_no_start(earlier: Journal) -> None:
    assert by_id(earlier, "0badc0de", Role.SOURCE).still.first == (4711, 440000)
    assert by_id(earlier, "0badc0e1", Role.SOURCE).still.first == (4712, None)
    assert by_id(earlier, "0badc0df", Role.DESTINATION).still.first == (detail.NO_PROCESS, None)


def test_what_the_steps_tell(earlier: Journal) -> None:
    told = [event.told for event in by_id(earlier, "0badc0de", Role.SOURCE).events()]
    assert Told(bytes=7340032, wire=2097152, resumed=0, seconds=1.25) in told and Told(killed=False) in told
    assert Told(reason="TimeoutError('too slow')") in told
    there = by_id(earlier, "0badc0de", Role.DESTINATION).events()
    assert Told(rootfs_uuid=uuid(4), on_disk_uuid=uuid(3)) in [event.told for event in there]
    assert [event.told.files for event in by_id(earlier, "0badc0e1", Role.SOURCE).events()][-1] == 2


def test_each_key_is_in_it(earlier: Journal) -> None:
    """Who adds one adds it there too, as it is on disk from then on."""
    found = [key for migration in earlier._recorded() for key in json.loads(on_disk(earlier, migration))]
    assert set(found) == detail.KEYS
    assert len(detail.KEYS) == sum(len(part.__struct_fields__) for part in detail.PARTS), "one key, one part"
    told = {key for migration in earlier._recorded() for event in migration.events() for key in event.detail}
    assert set(Told.__struct_fields__) <= told


def test_what_was_read_is_written_as_it_was(earlier: Journal) -> None:
    """To the byte: an older version goes on with it."""
    for migration in earlier._recorded():
        before = on_disk(earlier, migration)
        migration.note("again", **migration.given())
        assert on_disk(earlier, migration) == before
        if "rounds" in before:
            migration.note("again", rounds=migration.data.rounds, figures=migration.handover.figures)
            assert json.loads(on_disk(earlier, migration))["rounds"] == json.loads(before)["rounds"]


def test_what_a_newer_version_has_recorded_stays(earlier: Journal) -> None:
    migration = change(earlier, by_id(earlier, "0badc0de", Role.SOURCE), "tomorrow", {"a": [1]})
    migration = change(earlier, migration, "leave.tomorrow", 1)
    assert migration.handover.leave == LEAVE
    migration.note("kept", kept=["0badc0de.2"])
    found = json.loads(on_disk(earlier, migration))
    assert found["tomorrow"] == {"a": [1]} and found["kept"] == ["0badc0de.2"] and found["leave"]["tomorrow"] == 1
    assert "tomorrow" not in migration.given()


@pytest.mark.parametrize(("key", "value", "part"), [
    ("pid", "4711", "still"), ("ports", [1], "still"), ("init", [1], "still"), ("leave", "?", "handover"),
    ("attempt", 1.5, "handover"), ("kept", "all", "copy"), ("memory", "yes", "begun"), ("abandoned", 0, "ending"),
    ("rounds", {"1": {}}, "data"), ("hwaddrs", [None], "arrived"), ("caller", None, "consent")])
def test_a_value_of_another_type_breaks_its_part_alone(earlier: Journal, key: str, value: Any, part: str) -> None:
    migration = change(earlier, by_id(earlier, "0badc0de", Role.SOURCE), key, value)
    parts = {"begun", "consent", "data", "still", "handover", "arrived", "copy", "ending"}
    with pytest.raises(JournalBroken, match=key):
        getattr(migration, part)
    assert all(getattr(migration, each) for each in parts - {part})


def test_what_is_no_record_at_all(earlier: Journal) -> None:
    with earlier.transaction() as db:
        db.execute("UPDATE migrations SET detail = '{' WHERE role = 'source'")
    with pytest.raises(JournalBroken):
        earlier.by_id("0badc0de", Role.SOURCE)
    with earlier.transaction() as db:
        db.execute("UPDATE migrations SET detail = '[1]'")
        db.execute("UPDATE events SET detail = '{\"reason\": 1}'")
    with pytest.raises(JournalBroken):
        earlier.all()


@pytest.mark.parametrize("given", [{"pids": 1}, {"pid": "1"}, {"kept": "web.1"}, {"restored_at": None, "attempt": "2"},
                                   {"rounds": [{"bytes": "7"}]}])
def test_a_slip_is_not_recorded(earlier: Journal, given: dict[str, Any]) -> None:
    migration = by_id(earlier, "0badc0e1", Role.SOURCE)
    with pytest.raises(TypeError):
        migration.note("slip", **given)
    with pytest.raises(TypeError):
        migration.move(Event.SENT, **given)
    with pytest.raises(TypeError):
        migration.learn(**given)
    assert migration.state is State.PREPARING and migration.events()[-1].step != "slip"


def test_what_is_learned_goes_with_the_next_record(earlier: Journal) -> None:
    migration = by_id(earlier, "0badc0e1", Role.SOURCE)
    assert not migration.copy.rootfs_uuid
    migration.learn(rootfs_uuid=uuid(5))
    assert migration.copy.rootfs_uuid == uuid(5) and uuid(5) not in on_disk(earlier, migration)
    migration.note("attempt", attempt=1)
    assert json.loads(on_disk(earlier, migration))["rootfs_uuid"] == uuid(5)


def test_a_round_has_on_disk_what_is_known_of_it() -> None:
    assert msgspec.to_builtins([DiskRound(), DiskRound(parent=""), DiskRound(parent="", full=False, bytes=0)]) == [
        {}, {"parent": ""}, {"parent": "", "bytes": 0, "full": False}]


def test_figures_are_shown_without_those_that_there_are_none_of() -> None:
    """A dump with its memory stops nothing; and a 0 is a figure."""
    assert Figures(memory=4096, dump_seconds=0.5).to_json() == {
        "increment": 0, "memory": 4096, "wire_bytes": 0, "dump_seconds": 0.5, "send_seconds": 0.0}


def test_what_is_recorded_anywhere_is_of_a_part() -> None:
    known = detail.KEYS | {"anew", "id", "role", "name", "lxcpath", "peer", "event"}
    for path in CODE:
        if path.is_relative_to(TREE / "migrator" / "preflight"):  # what that notes is what it sees, and is not recorded
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
                    node.func.attr in ("note", "move", "create", "learn")):
                assert {each.arg for each in node.keywords if each.arg} <= known, f"{path}:{node.lineno}"


def test_nobody_else_reads_it_by_string() -> None:
    """What a record has is asked of its parts, which mypy sees into."""
    codec = Path(detail.__file__)
    for path in CODE:
        assert path == codec or not re.search(r"\b(detail|_keys)(\[[\"']|\.get\()", path.read_text()), path
