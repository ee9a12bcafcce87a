"""What `migrator resume` does on either host, and for every unfinished migration of a host, as at boot.

`migrator.healing` has the decisions; the model in tests/migrator/ tries them all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shlex
import time
from pathlib import Path
from typing import Any

from migrator import advice, aftermath, container_config, destination, healing, log, lxc, names, plan
from migrator.cli import Result
from migrator.errors import (
    Busy,
    ConnectionLost,
    InternalError,
    Interrupted,
    NoMigration,
    SourceNeeded,
    SourceStateUnknown,
    from_json,
    outcome,
)
from migrator.journal import DEFAULT_PATH, Journal, Migration
from migrator.peer import connected
from migrator.service import Service
from migrator.states import ENDED, Role, State
from stages import create_dump, force, migrate, restore_dump, rollback
from stages.drive import Drive, locked_for
from tunnel.errors import DocumentedError

NAME = "resume"
DATA_FLOWS = {State.PREPARING, State.PREPARED}
ASK_AFTER = 60.0  # seconds with the token after which the source is asked first: it may have been given up for lost
ASK_LIMIT = 10.0  # seconds for that
SOURCE_LIMIT = 86400.0  # seconds without a word on stdout: `resume` there has limits of its own, and prints at its end


# --- one migration --------------------------------------------------------------------------------------------


def one(args: argparse.Namespace, name: str, lxcpath: Path, *, at_boot: bool = False) -> Result:
    """Carry the newest migration of a container on, or bring the container to where it may run."""
    with Journal(DEFAULT_PATH) as journal:
        with locked_for(journal, name, lxcpath):
            migration = journal.latest(name, lxcpath)
            if migration is None:
                raise NoMigration(name=name, stage=NAME, next=f"migrator migrate {name} -d HOST")
            if migration.role is Role.SOURCE:
                return _on_source(args, journal, migration, at_boot=at_boot)
            done = _on_destination(args, migration, at_boot=at_boot)
        # The source needs the lock on this host.
        return done if _is_all(migration, at_boot=at_boot) else _source_acts(args, migration, done)


def _result(migration: Migration, text: str, *, already: bool = False) -> Result:
    return Result({"migration": migration.id, "name": migration.name, "stage": NAME, "already": already,
                   "state": migration.state}, text)


def _ended(migration: Migration) -> Result:
    return _result(migration, f"The migration of {migration.name} has ended ({migration.state}): there is nothing to "
                              f"carry on.", already=True)


# --- on the source --------------------------------------------------------------------------------------------


def _on_source(args: argparse.Namespace, journal: Journal, migration: Migration, *, at_boot: bool) -> Result:
    complete(args, migration)

    def tell() -> None:
        with connected(args, args.destination) as there:
            rollback.tell(migration, there)

    if migration.ended:
        return force.tell_late(migration, tell) or _ended(migration)
    if migration.state is State.ROLLING_BACK:
        return rollback.roll_back(migration, tell)
    if at_boot and migration.state in DATA_FLOWS:
        return _result(migration, f"{_where(migration)} What has been sent is kept. Go on with: "
                                  f"{advice.command(NAME, migration)}")
    if at_boot and migration.state is State.DUMPING:
        create_dump.heal(migration)
        return _result(migration, f"{_where(migration)} Go on with: {advice.command(NAME, migration)}")
    if migration.state in (State.OFFERED, State.DUMPED) and not _can_go_on(args, migration):
        log.warning(f"{args.destination} has lost the memory images of {migration.name}, as after a reboot: "
                    f"it cannot be restored there")
        return rollback.roll_back(migration, tell)
    return Drive(args, journal, lxc.Container(migration.name, migration.lxcpath), migration).run()


def _where(migration: Migration) -> str:
    state = lxc.Container(migration.name, migration.lxcpath).state
    return f"{migration.name} is {state} on this host, which has the token."


def _can_go_on(args: argparse.Namespace, migration: Migration) -> bool:
    """Ask the destination, the only one who knows; raises SourceStateUnknown where it does not answer."""
    try:
        with connected(args, args.destination) as there:
            answer = there.call("state", id=migration.id)
    except Interrupted:
        raise
    except DocumentedError as error:
        log.warning(aftermath.note(migration))
        raise outcome(SourceStateUnknown, memory=migration.memory)(
            error, name=migration.name, destination=args.destination, rollback=advice.command(NAME, migration),
        ) from error
    there_state = State(answer["state"]) if answer["state"] else None
    stage = healing.on_source(migration.state, there_state, images=bool(answer.get("images", True)))
    return stage != "rollback" or there_state is not State.OWNED


def complete(args: argparse.Namespace, migration: Migration) -> None:
    """Fill in what was not given: from the migration's beginning, or else the defaults of `migrator migrate`."""
    stored = {"max_downtime": 120.0, "max_rounds": 5, "reconnect": 300.0, "ignore": [],
              "stop_timeout": plan.STOP_TIMEOUT, **(migration.detail.get("options") or {})}
    for key in migrate.OPTIONS:
        if getattr(args, key) is None:
            setattr(args, key, stored.get(key))
    args.destination = args.destination or migration.peer
    args.dry_run, args.map_bridge, args.destination_lxcpath = False, [], None


# --- on the destination ---------------------------------------------------------------------------------------


def _on_destination(args: argparse.Namespace, migration: Migration, *, at_boot: bool) -> Result:
    """What this host can do by itself."""
    if migration.state is State.RESTORING:
        restore_dump.settle(migration)
    if migration.state is State.RESTORED:
        _complete_restored(migration)
    if migration.ended:
        return _ended(migration)
    there: State | None = None
    if migration.state in healing.MAY_RESTORE:
        there = state_of_source(args, migration, must=at_boot)
    act = healing.on_destination(migration.state, there, images=aftermath.images_are_here(migration))
    if act == "restore-dump":
        return restore_dump.carry_out(migration, args.max_downtime or 120.0)
    if act == "rollback":
        why = "it runs on its source again" if there is State.ROLLED_BACK else "its memory images are gone"
        log.warning(f"{migration.name} cannot be restored here ({why}): this host gives it up")
        return rollback.give_up_here(migration)
    return _result(migration, f"{migration.name} is {migration.state} here. {aftermath.note(migration)}".rstrip())


def _complete_restored(migration: Migration) -> None:
    """A crash between the record and the end of the fence: if that was a reboot, nobody could start it since."""
    container = lxc.Container(migration.name, migration.lxcpath)
    if container_config.fence_of(container.config_file.read_text(errors="replace")) == migration.id:
        container_config.unfence(container.folder, migration.id)
        if container.state == "STOPPED":
            log.warning(f"{migration.name} had run here before a reboot: it is started from its disk")
            aftermath.start(migration, container)


def _is_all(migration: Migration, *, at_boot: bool) -> bool:
    """Whether nothing is left that the source must do, or that it will do by itself."""
    if migration.state is State.ABANDONED:
        return not migration.detail.get("given_up_here") or bool(migration.detail.get("source_knows"))
    if at_boot:  # data that are under way can wait
        return migration.state not in (State.RESTORED, State.ABANDONING)
    return migration.ended


def state_of_source(args: argparse.Namespace, migration: Migration, *, must: bool) -> State | None:
    """The source's state of this migration; None where it does not know it, or (unless it `must`) cannot be asked.

    A source whose administrator has given this host up for lost runs the container again.
    """
    try:
        return _ask(args, migration)
    except Interrupted:
        raise
    except DocumentedError as error:
        if must:
            raise SourceNeeded(known=f"{migration.name} is not restored before {migration.peer} has been asked whether "
                                     f"it runs it again.", source=migration.peer, reason=str(error).rstrip("."),
                               next=f"migrator {NAME} {migration.name}   (on this host, to restore it unasked)",
                               ) from error
        log.warning(f"{migration.peer} cannot be asked whether it runs {migration.name} again: {error}")
        return None


def _ask(args: argparse.Namespace, migration: Migration) -> State | None:
    with connected(args, source_of(args, migration)) as there:
        answer = there.call("source-state", id=migration.id, state=migration.state)
    return State(answer["state"]) if answer["state"] else None


def ask_first(migration: Migration) -> None:
    """For who types restore-dump long after the token was taken: gives it up where the source runs it again."""
    if migration.state is not State.OWNED or time.time() - migration.updated < ASK_AFTER:
        return
    args = argparse.Namespace(timeout=ASK_LIMIT, accept_new_host_key=False, path="prefer-direct")
    if state_of_source(args, migration, must=False) is State.ROLLED_BACK:
        log.warning(f"{migration.name} runs on its source again: this host gives it up")
        rollback.give_up_here(migration)


def source_of(args: argparse.Namespace, migration: Migration) -> str:
    return str(getattr(args, "source", None) or migration.peer)


def _source_acts(args: argparse.Namespace, migration: Migration, done: Result) -> Result:
    """Have the source carry it on: `migrator resume` there, over SSH; raises its error, or SourceNeeded."""
    next_ = advice.command(f"{NAME}@source", migration)
    known = done.text.partition(" Next: ")[0]
    try:
        answer: dict[str, Any] | None = None
        there = _ask(args, migration)
        if there is not None and there not in ENDED:  # else its newest migration of that name is another one
            log.info(f"{known} {migration.peer} is told to go on.")
            answer = _run_on_source(args, migration, [*shlex.split(next_.partition("   (on ")[0]), "--json"])
    except DocumentedError as error:
        if isinstance(error, Interrupted) or error.host:
            raise
        raise SourceNeeded(known=known, source=migration.peer, reason=str(error).rstrip("."), next=next_) from error
    if migration.state is State.ABANDONED:
        migration.note("source-knows", source_knows=True)
    return Result(done.data | {"next": "", "source": answer}, f"{known} {migration.peer} has done what was left.")


def _run_on_source(args: argparse.Namespace, migration: Migration, argv: list[str]) -> dict[str, Any]:
    """What a command prints there with --json; raises the error that it prints."""
    from migrator import ssh

    target = destination.parse(source_of(args, migration))
    with ssh.connect(target, accept_new_host_key=args.accept_new_host_key, timeout=args.timeout) as session:
        stream = session.serve(argv)
        stream.settimeout(SOURCE_LIMIT)
        said, buffer = b"", bytearray(65536)
        try:
            while count := stream.readinto(memoryview(buffer)):
                said += buffer[:count]
        except ConnectionLost:
            if not said.strip():
                raise
    try:
        answer = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise InternalError(reason=f"{target} answered {said[-200:]!r}") from error
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise from_json(answer["error"], migration.peer)
    return dict(answer)


def source_state(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """What this host, the source, knows of a migration; `state` is the asking destination's own.

    After a forced rollback the source learns by it that the destination knows.
    """
    id_ = names.migration_id(str(fields["id"]))
    migration = service.journal.by_id(id_, Role.SOURCE)
    if migration and migration.owes and fields.get("state") == State.ABANDONED:
        with contextlib.suppress(Busy):
            service.lock(migration.name)
            migration = service.journal.by_id(id_, Role.SOURCE) or migration
            migration.note("abandoned", abandoned=True)
    return {"state": migration.state if migration else None, "owner": migration.owner if migration else None}


# --- all of them ----------------------------------------------------------------------------------------------


def every(args: argparse.Namespace) -> Result:
    """Each unfinished migration of this host, one after the other; one that fails stops none of the others."""
    with Journal(DEFAULT_PATH) as journal:
        newest = {(each.name, each.lxcpath): each for each in journal.all()}
        found = [each for each in sorted(newest.values(), key=lambda each: each.created)
                 if not each.ended or (each.role is Role.DESTINATION and not _is_all(each, at_boot=args.at_boot))]
    outcomes: list[dict[str, Any]] = []
    lines = []
    for migration in found:
        outcome: dict[str, Any] = {"migration": migration.id, "name": migration.name, "lxcpath": str(migration.lxcpath)}
        try:
            done = one(copy.copy(args), migration.name, migration.lxcpath, at_boot=args.at_boot)
            outcome |= {"status": done.status, "result": done.data}
            lines.append(done.text)
        except Interrupted:
            raise
        except DocumentedError as error:
            outcome |= {"status": error.exit_status, "error": error.to_json()}
            log.error(str(error))
            log.cure(error.hint)
            lines.append(f"{migration.name}: not done (exit status {error.exit_status}).")
        outcomes.append(outcome)
    return Result({"stage": NAME, "migrations": outcomes}, "\n".join(lines) or "No migration is unfinished.",
                  status=worst([outcome["status"] for outcome in outcomes]))


def worst(statuses: list[int]) -> int:
    """The exit status that weighs most: what was frozen first, then any failure; 0 when all is well."""
    return max(statuses, key=lambda status: (status in (3, 4, 5), status), default=0)


HANDLERS = {"source-state": source_state}
