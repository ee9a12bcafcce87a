"""The driver of `migrator migrate` and `migrator resume`: step by step, as the states of both hosts have it.

Each step is a stage's own function, called over one connection. When one fails, the container shall run where it may:
see `_back`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from migrator import advice, log, lxc, plan
from migrator.cli import Result
from migrator.errors import (
    AlreadyMigrating,
    AlreadyRuns,
    Busy,
    ConnectionLost,
    ContainerNotRunning,
    DowntimeExceeded,
    InternalError,
    Interrupted,
    MigratorError,
    OutcomeError,
    ProtocolError,
    SourceRunsAgain,
)
from migrator.journal import Journal, Migration
from migrator.layout import locked
from migrator.peer import connected
from migrator.plan import Plan, Round
from migrator.protocol import Connection
from migrator.report import duration, size
from migrator.states import Role, State, step
from stages import check, cleanup, create_dump, finish, offer, prepare_data, rollback

BUSY_LIMIT = 60.0  # seconds that the destination may take to notice that an earlier connection is gone


@contextlib.contextmanager
def locked_for(journal: Journal, name: str, lxcpath: Path) -> Iterator[None]:
    """As `locked`; a second request learns which migration is under way."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(name))
        except Busy as error:
            found = journal.latest(name, lxcpath)
            if found is None or found.ended:
                raise
            raise AlreadyMigrating(name=name, peer=advice.other_host(found.role, found.peer, found.detail),
                                   id=found.id, next=f"migrator status {name}") from error
        yield


class Drive:
    """Takes one step after the other, each chosen by the states of both hosts, until the migration has ended."""

    def __init__(self, args: argparse.Namespace, journal: Journal, container: lxc.Container,
                 migration: Migration | None) -> None:
        args.one_shot = True
        self.args = args
        self.journal = journal
        self.container = container
        self.migration = migration
        self.begun = time.monotonic()
        self.frozen_since = 0.0  # by time.time(), where this process has frozen it
        self.frozen_seconds: float | None = None
        self.dumped: dict[str, Any] = {}
        self.ended: Result | None = None  # by a rollback
        self.plan: Plan | None = None
        self._connection = contextlib.ExitStack()

    def run(self) -> Result:
        with self._connection:
            try:
                self._ahead()
            except BaseException as error:
                self._back(_as_ours(error))
        return self.ended or self._result()

    # --- forward ---

    def _ahead(self) -> None:
        if self.migration and self.migration.state is State.DUMPING:
            create_dump.heal(self.migration)
        there = self._connect()
        while stage := self._next(there):
            if stage in ("prepare-data", "create-dump") and self.plan is None:
                self.plan = self._look(there)
                if self.args.dry_run:
                    self.ended = self._described(self.plan, there)
                    return
            {"prepare-data": self._prepare, "import-data": self._import, "create-dump": self._dump,
             "restore-dump": self._restore, "finish": self._finish, "rollback": self._roll_back}[stage](there)

    def _connect(self) -> Connection:
        self.there: Connection | None = self._connection.enter_context(connected(self.args, self.args.destination))
        return self.there

    def _next(self, there: Connection) -> str:
        if self.migration is None:
            return "prepare-data"
        stage = step(self.migration.state, prepare_data.state_there(there, self.migration))
        if stage == "create-dump" and self.migration.state is State.PREPARED and self._more_rounds():
            return "prepare-data"
        return stage

    def _more_rounds(self) -> bool:
        rule, why = plan.stop(self._rounds(), self.args.max_rounds)
        if rule:
            _say("rounds", f"No more rounds: {why}.", rule=rule, rounds=len(self._rounds()))
        return not rule

    def _rounds(self) -> tuple[Round, ...]:
        found = self.migration.detail["rounds"] if self.migration else []
        return tuple(Round.from_detail(each) for each in found if "bytes" in each)

    def _look(self, there: Connection) -> Plan:
        """The preflight, and what comes of it."""
        if self.container.state != "RUNNING":
            raise ContainerNotRunning(name=self.container.name, lxcpath=self.container.lxcpath,
                                      state=self.container.state)
        bridges = self.migration.detail["bridges"] if self.migration else None
        looked = check.before_stage(self.args, self.container, there, full=True, bridges=bridges,
                                    known_copy=self.migration is not None)
        found = Plan(self.container.name, there.peer_host, looked.disk_bytes, looked.container.memory,
                     self.args.max_rounds, self.args.max_downtime, self._rounds())
        if not self.args.dry_run:
            _say("plan", found.text, **found.to_json())
        return found

    def _prepare(self, there: Connection) -> None:
        disk_bytes = self.plan.disk_bytes if self.plan else 0
        done = prepare_data.carry_out(self.args, self.journal, self.migration, self.container, there, disk_bytes)
        self.migration = self._recorded()
        if self.plan:
            self.plan = dataclasses.replace(self.plan, rounds=self._rounds())
        _say("round", f"Round {done.data['round']}: {size(done.data['bytes'])} in {duration(done.data['seconds'])}.",
             **{key: done.data[key] for key in ("round", "full", "bytes", "wire_bytes", "resumed_bytes", "seconds")})

    def _recorded(self) -> Migration | None:
        return self.journal.latest(self.container.name, self.container.lxcpath, Role.SOURCE)

    def _import(self, there: Connection) -> None:
        there.call("import", id=self._of.id)

    @property
    def _of(self) -> Migration:
        """The migration, from the first round on."""
        if self.migration is None:
            raise InternalError(reason="no migration has begun")
        return self.migration

    def _dump(self, there: Connection) -> None:
        if self.plan and self._of.state is State.PREPARED:
            _say("freeze", self.plan.prediction, **self.plan.to_json())
        done = create_dump.carry_out(self.args, self._of, self.container, there)
        self.dumped = done.data
        self.frozen_since = done.data.get("frozen_at", 0.0)

    def _restore(self, there: Connection) -> None:
        """What is left of the time frozen is the restore's; after a break it has all of it anew."""
        offer.settle(self._of, State.OWNED)
        left = self.args.max_downtime - (time.time() - self.frozen_since if self.frozen_since else 0)
        if left <= 0:
            raise DowntimeExceeded(name=self._of.name, seconds=f"{self.args.max_downtime:g}")
        done = there.call("restore", id=self._of.id, limit=left)
        running_since = time.time() - float(done["running_for"])
        self.frozen_seconds = running_since - float(self._of.detail["frozen_at"])

    def _finish(self, there: Connection) -> None:
        finish.carry_out(self.args, self._of, there)

    def _roll_back(self, there: Connection) -> None:
        self.ended = rollback.roll_back(self._of, lambda: rollback.tell(self._of, there))

    # --- back ---

    def _back(self, error: MigratorError) -> None:
        """After a failure: the container shall run, here if possible. Returns only where it runs there after all."""
        self.migration = self._recorded()
        if self.migration is None or self.migration.ended:
            raise error
        interrupted = isinstance(error, Interrupted)
        state = self.migration.state
        if state is State.FINISHING:
            self._try_finish(error)
        elif state in (State.OFFERED, State.DUMPED) or interrupted:
            self._give_up(error)
        else:
            if not isinstance(error, OutcomeError):  # that one says itself how to go on
                log.info(f"{self.migration.name} runs on here, and what has been sent is kept. Go on with: "
                         f"{advice.again('create-dump', self.migration)}")
            raise error

    def _give_up(self, error: MigratorError) -> None:
        """Take the token back and thaw; SourceStateUnknown where the destination does not answer."""
        cause = error.cause if isinstance(error, OutcomeError) else error
        log.warning(f"{cause} The attempt is rolled back.")
        migration = self._of
        try:
            rollback.roll_back(migration, self._tell)
        except AlreadyRuns:
            log.warning(f"{migration.name} runs on {migration.detail['destination_host']} already.")
            self._try_finish(error)
            return
        if isinstance(cause, Interrupted):
            raise cause
        again = advice.written("migrate", Role.SOURCE, migration.name, migration.peer, migration.detail)
        raise SourceRunsAgain(cause, name=migration.name, next=again) from error

    def _tell(self) -> None:
        """Have the destination give the token back, over the connection that is there or else a new one."""
        with contextlib.suppress(ConnectionLost, ProtocolError):
            if self.there:
                rollback.tell(self._of, self.there)
                return
        self._connection.close()
        self._with_new_connection(lambda there: rollback.tell(self._of, there))

    def _try_finish(self, error: MigratorError) -> None:
        """It runs there: what is left to do needs a connection that works."""
        try:
            self._connection.close()
            self._with_new_connection(self._finish)
        except MigratorError as trouble:
            log.warning(f"{trouble} {self._of.name} runs on {self._of.detail['destination_host']}; the rest is done "
                        f"by: {advice.next_command(self._of)}")
            raise error from trouble

    def _with_new_connection(self, call: Callable[[Connection], None]) -> None:
        """The destination may need a moment to see that the old connection, which has the container locked, is gone."""
        end = time.monotonic() + BUSY_LIMIT
        while True:
            try:
                with connected(self.args, self.args.destination) as there:
                    call(there)
                    return
            except Busy:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    # --- what is said ---

    def _result(self) -> Result:
        migration = self._of
        removed = self._undefine() if self.args.undefine_source else []
        predicted = self.plan.frozen_seconds if self.plan else None
        seconds = time.monotonic() - self.begun
        host = migration.detail["destination_host"]
        text = f"{migration.name} has moved to {advice.moved_to(migration)} in {duration(seconds)}."
        if self.frozen_seconds is not None:
            text += f" {plan.compared(predicted, self.frozen_seconds)}"
        kept = "" if removed else f" The stopped copy is kept here until: migrator cleanup {migration.name}"
        return Result({
            "migration": migration.id, "name": migration.name, "stage": self.args.command, "already": False,
            "destination": host, "new_name": migration.other_name,
            "rounds": [dataclasses.asdict(each) for each in self._rounds()],
            "frozen_seconds": None if self.frozen_seconds is None else round(self.frozen_seconds, 3),
            "predicted_frozen_seconds": None if predicted is None else round(predicted, 3),
            **{key: self.dumped.get(key) for key in ("increment", "memory", "dump_seconds", "send_seconds")},
            "seconds": round(seconds, 3), "removed": removed,
        }, text + kept)

    def _undefine(self) -> list[str]:
        cleaner = cleanup.Cleaner(dry_run=False)
        cleanup.clean_container(cleaner, self.journal, self.container.name, self.container.lxcpath, keep_copy=False)
        return cleaner.removed

    def _described(self, plan: Plan, there: Connection) -> Result:
        """For --dry-run: the plan, and the commands of the round that would come first."""
        stage = prepare_data.carry_out(self.args, self.journal, self.migration, self.container, there, 0)
        return Result({**stage.data, "plan": plan.to_json()}, f"{plan.text}\n{stage.text}")


def _say(kind: str, text: str, **fields: Any) -> None:
    """A line for people, or an event of --json (docs/json.md)."""
    if log.level >= log.Level.NORMAL:
        log.say(kind, text, **fields)


def _as_ours(error: BaseException) -> MigratorError:
    if isinstance(error, MigratorError):
        return error
    log.debug(f"{type(error).__name__}: {error}")
    return InternalError(reason=f"{type(error).__name__}: {error}")
