# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator migrate --dry-run`: the commands of all stages that are left, in order, each with its host.

They come from the functions behind the stages' own --dry-run. A stage describes itself from its migration's record. As
no such record exists yet, or not as it will be by then, one is made up for each host in a throw-away journal.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from migrator.base import names
from migrator.base.result import Result
from migrator.base.run import shown
from migrator.copies import origins
from migrator.host import lxc
from migrator.record.decisions import step
from migrator.record.detail import DiskRound
from migrator.record.journal import Journal, Migration
from migrator.record.states import FROZEN, Event, Role
from migrator.remote.other_host import connected
from migrator.transfer import bandwidth
from migrator.transfer.plan import Plan
from migrator.transfer.rpc import Connection
from stages.steps import (
    ask_state,
    end_copy,
    examine,
    freeze_and_offer,
    give_back,
    import_round,
    restore_here,
    send_disk,
)
from stages.steps.options import MoveOptions, MoveRequest
from stages.steps.standstill import Standstill


def run(request: MoveRequest, move: MoveOptions, journal: Journal, container: lxc.Container,
        migration: Migration | None) -> Result:
    """The plan, and every command from the next stage on."""
    with connected(request.connect, request.destination) as there:
        first = step(migration.state, ask_state.state(there, migration)) if migration else send_disk.STAGE
        if migration and first == "rollback":
            return give_back.described(migration)
        if first not in (send_disk.STAGE, import_round.STAGE, freeze_and_offer.STAGE):
            return _described(request, move, migration, container, there, None, first)
        if not (migration and migration.state in FROZEN):
            examine.require_running(container)
        memory = send_disk.with_memory(request, migration)
        looked = examine.before_stage(request, move.ignore, container, there, full=True,
                                      known_copy=migration is not None,
                                      bridges=migration.begun.bridges if migration else None, memory=memory)
        plan = Plan(container.name, there.peer_host, looked.disk_bytes, looked.container.memory if memory else None,
                    move.max_rounds, move.max_downtime, stop_timeout=move.stop_timeout,
                    measured=bandwidth.measure(there))
        found = _described(request, move, migration, container, there, looked, first)
        return Result({**found.data, "plan": plan.to_json()}, f"{plan.text}\n{found.text}", paint=found.paint)


def _described(request: MoveRequest, move: MoveOptions, migration: Migration | None, container: lxc.Container,
               there: Connection, looked: examine.Look | None, first: str) -> Result:
    """`looked` is what the preflight saw, if the dump is still to come."""
    with _made_up(request, migration, container, there) as (journal, source, destination):

        def prepare() -> Result:
            said = send_disk.carry_out(request, journal, source, container, there, 0, dry_run=True)
            for each in (source, destination):
                each.note("round", rounds=[*each.data.rounds, DiskRound()])
            return said

        def dump() -> Result:
            if looked is None:
                return Result({"dry_run": []})
            way = freeze_and_offer.way_of(Standstill(move, source, container, there), looked)
            source.note("frozen", **way.record().to_json())
            return way.described()

        stages: dict[str, Callable[[], Result]] = {
            send_disk.STAGE: prepare,
            import_round.STAGE: lambda: import_round.described(destination),
            freeze_and_offer.STAGE: dump,
            restore_here.STAGE: lambda: restore_here.described(destination),
            end_copy.STAGE: lambda: end_copy.described(source),
        }
        left = list(stages)[list(stages).index(first):]
        found: list[dict[str, Any]] = []
        text = []
        for stage in left:
            text.append(f"# {stage}")
            on_destination = stage in (import_round.STAGE, restore_here.STAGE)
            for command in stages[stage]().data["dry_run"]:
                host = there.peer_host if on_destination else command["host"]
                found.append({"stage": stage, "host": host, "argv": command["argv"]})
                text.append(f"{host}# {shown(command['argv'])}")
    return Result({"dry_run": found}, "\n".join(text))


@contextlib.contextmanager
def _made_up(request: MoveRequest, migration: Migration | None, container: lxc.Container,
             there: Connection) -> Iterator[tuple[Journal, Migration, Migration]]:
    """A throw-away journal for the block, with the migration as it would be recorded on the source and the destination.
    """
    name = origins.name_there(request.target.new_name, migration, container.name)
    given: dict[str, Any] = migration.given() if migration else {
        "destination_lxcpath": send_disk.lxcpath_there(there, request.target.lxcpath),
        "bridges": dict(request.target.bridges), "rounds": [], "other_name": name,
    }
    given["memory"] = send_disk.with_memory(request, migration)
    given["rounds"] = [each for each in migration.data.rounds if each.bytes is not None] if migration else []
    id_ = migration.id if migration else names.new_migration_id()
    with tempfile.TemporaryDirectory(prefix="migrator-") as folder, Journal(Path(folder, "journal.db")) as journal:
        source = journal.create(id=id_, role=Role.SOURCE, name=container.name, lxcpath=container.lxcpath,
                                peer=request.destination, event=Event.SEND, **given)
        destination = journal.create(
            id=id_, role=Role.DESTINATION, name=name, lxcpath=Path(given["destination_lxcpath"]), peer=there.peer_host,
            event=Event.RECEIVE, **given | {"other_name": container.name})
        yield journal, source, destination
