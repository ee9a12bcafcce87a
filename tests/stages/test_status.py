# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator status` shows, and the commands that it advises."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.cli import make_parser, parse
from migrator.errors.containers import AlreadyMigrating, NoMigration
from migrator.record import image_folders, migration_paths, next_commands
from migrator.record.decisions import NEXT
from migrator.record.detail import Begun
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages import status
from stages.steps import migration_status

POOL = Path("/pool")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(status, "DEFAULT_PATH", tmp_path / "journal.db")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with Journal(tmp_path / "journal.db") as opened:
        yield opened


def on_source(journal: Journal, **detail: object) -> Migration:
    return journal.create(
        id="0badc0de", role=Role.SOURCE, name="web", lxcpath=POOL, peer="root@10.0.3.3", event=Event.SEND,
        destination_host="hostb", source_lxcpath="/pool", destination_lxcpath="/var/lib/lxc",
        **{"lxcpath_given": False, "rounds": [], **detail},
    )


def shown(*argv: str) -> Result:
    done = parse(["status", *argv]).run()
    assert done
    return done


def run(*argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = shown(*argv).data["migrations"]
    return found


def test_nothing_under_way(journal: Journal) -> None:
    assert shown().text == "No migration is in progress."
    assert run() == []
    with pytest.raises(NoMigration):
        run("web")


def test_ended_ones_only_when_asked_for(journal: Journal) -> None:
    migration = on_source(journal)
    migration.move(Event.ROLL_BACK)
    migration.move(Event.ROLLED_BACK)
    assert run() == []
    assert len(run("--all")) == len(run("web")) == 1


def test_what_is_told(journal: Journal) -> None:
    migration = on_source(journal, rounds=[{"bytes": 1000, "full": True}, {"bytes": 50, "full": False}, {"parent": ""}])
    for event in (Event.SENT, Event.FREEZE):
        migration.move(event, frozen_at=1234.5)
    migration.move(Event.OFFER, figures={"increment": 7, "memory": 4000})
    (told,) = run("web", "--events")
    json.dumps(told)
    assert told.items() >= {
        "id": "0badc0de", "name": "web", "role": "source", "peer": "hostb", "state": "offered", "owner": "unknown",
        "lxcpath": "/pool", "frozen_at": 1234.5, "bytes": {"full": 1000, "increment": 57, "memory": 4000, "spool": 0},
    }.items()
    assert "restored_at" not in told
    assert [(event["step"], event["phase"]) for event in told["events"]] == [
        ("send", "done"), ("sent", "done"), ("freeze", "done"), ("offer", "done"),
    ]


def test_the_table(journal: Journal) -> None:
    on_source(journal, rounds=[{"bytes": 5 << 20, "full": True}])
    head, row = str(shown().text).splitlines()
    assert head.split() == ["NAME", "ID", "MOVES", "STATE", "OWNER", "AGE", "SIZE", "NOW", "NEXT"]
    assert row.split()[:4] == ["web", "0badc0de", "to", "hostb"]
    assert "5.0 MiB" in row
    assert row.endswith("migrator prepare-data web -d root@10.0.3.3")


def test_what_lies_in_the_spool_counts(journal: Journal, tmp_path: Path) -> None:
    migration = journal.create(id="00000001", role=Role.DESTINATION, name="db", lxcpath=tmp_path, peer="hosta",
                               event=Event.RECEIVE, rounds=[])
    spool = migration_paths.Layout(tmp_path, "db", "00000001").spool
    spool.mkdir(parents=True)
    (spool / "disk-1").write_bytes(bytes(3000))
    assert migration_status.sizes(migration)["spool"] == 3000


# --- advice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_name", ["web", "shop"])
@pytest.mark.parametrize(("role", "state"), NEXT)
def test_advice_can_be_pasted(role: Role, state: State, other_name: str) -> None:
    """Every command that is ever advised is one that the command line takes, on the host that it names."""
    begun = Begun(destination="root@hostb", destination_host="hostb", source_lxcpath="/a b",
                  destination_lxcpath="/pool", lxcpath_given=True, other_name=other_name)
    peer = "root@hostb" if role is Role.SOURCE else "hosta"
    text = next_commands.written(NEXT[role, state], role, "web", peer, begun)
    command, _, place = text.partition("   (on ")
    argv = shlex.split(command)
    assert argv[0] == "migrator"
    parse(argv[1:])
    args = make_parser().parse_args(argv[1:])
    verb, _, wanted = NEXT[role, state].partition("@")
    assert args.command == verb
    assert (args.name or args.name_word) == (other_name if place else "web")
    assert place == ("" if not wanted else f"{'hostb' if wanted == 'destination' else 'hosta'})")
    runs_on_source = wanted == "source" if wanted else role is Role.SOURCE
    assert args.lxcpath == ("/a b" if runs_on_source else "/pool")
    if "destination" in args and verb in next_commands.NEEDS_DESTINATION:
        assert args.destination == "root@hostb"
    if "new_name" in args:
        there = other_name if role is Role.SOURCE else "web"
        assert args.new_name == (None if other_name == "web" else there)


def test_the_path_is_left_out_where_it_is_the_usual_one() -> None:
    begun = Begun(source_lxcpath="/var/lib/lxc", lxcpath_given=False)
    assert next_commands.written("finish", Role.SOURCE, "web", "hostb", begun) == "migrator finish web"
    there = next_commands.written("finish@source", Role.DESTINATION, "web", "hosta", begun)
    assert there == "migrator finish web -P /var/lib/lxc   (on hosta)", "which is the usual one there nobody knows here"
    assert next_commands.this_host() == socket.gethostname()


@pytest.mark.parametrize(("given", "end"), [(True, "-P '/a b'"), (False, "")])
def test_the_path_in_the_words_of_an_error(journal: Journal, given: bool, end: str) -> None:
    migration = journal.create(id="00000001", role=Role.SOURCE, name="web", lxcpath=Path("/a b"), peer="root@hostb",
                               event=Event.SEND, rounds=[], source_lxcpath="/a b", lxcpath_given=given)
    error = AlreadyMigrating(name="web", peer="hostb", id=migration.id, next="x", path=next_commands.path(migration))
    assert error.hint == f"Continue with: x -- or give that migration up with: migrator rollback web {end}".rstrip()
