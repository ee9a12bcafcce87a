# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver of `migrator migrate` and `migrator resume`: runs step by step, as the states of both hosts require.

Each step is a stage's own function, called over one connection. If one fails, the container is made to run wherever it
may: see `_back`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

from migrator.base import log
from migrator.base.figures import duration, size
from migrator.base.result import Result
from migrator.copies import leave, origins, standing
from migrator.errors import InternalError, Interrupted
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.containers import (
    AlreadyRuns,
    BackThere,
    ContainerNotRunning,
    GoneThere,
    OutOfOrder,
    RunsUnrecorded,
    StoppedThere,
)
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded
from migrator.errors.outcomes import OutcomeError, SourceRunsAgain, outcome
from migrator.errors.this_host import Busy
from migrator.host import lxc
from migrator.record import container_lock, next_commands
from migrator.record.decisions import step
from migrator.record.journal import Journal, Migration
from migrator.record.states import Role, State
from migrator.transfer import bandwidth, plan
from migrator.transfer.messages import Import, Restore
from migrator.transfer.plan import Plan, Round
from migrator.transfer.rpc import Connection
from stages.steps import (
    ask_state,
    end_copy,
    examine,
    freeze_and_offer,
    give_back,
    moved_copy,
    offer,
    same_host,
    send_disk,
)
from stages.steps.cleaner import Cleaner
from stages.steps.options import MoveOptions, MoveRequest
from stages.steps.reconnect import Link, cause_of, say

T = TypeVar("T")
BUSY_LIMIT = 60.0  # seconds that the destination may take to end what an earlier connection began


class Drive:
    """Takes one step after the other, each chosen by the states of both hosts, until the migration has ended."""

    def __init__(self, command: str, request: MoveRequest, move: MoveOptions, journal: Journal,
                 container: lxc.Container, migration: Migration | None) -> None:
        self.command = command  # the command that drives
        self.request = request
        self.move = move
        self.journal = journal
        self.container = container
        self.migration = migration
        self.begun = time.monotonic()
        self.still_seconds: float | None = None  # for how long it was frozen, or with --no-memory stopped
        self.dumped: dict[str, Any] = {}
        self.ended: Result | None = None  # by a rollback
        self.stopped_there = ""  # what finish said of a container that does not run there
        self.plan: Plan | None = None
        self._link = Link(request.connect, request.destination, move.reconnect)

    def run(self) -> Result:
        with self._link:
            try:
                while not self._came_through():
                    pass
            except BaseException as error:
                # It ends either way, and its outcome says more than the interruption.
                with container_lock.held_back(raised=False):
                    self._back(as_ours(error))
        return self.ended or self._result()

    def _came_through(self) -> bool:
        """Go to the end; False if the connection was lost on the way and another try makes sense."""
        try:
            self._ahead()
            return True
        except DocumentedError as error:
            container_lock.check_interrupted()  # it came while the container was being thawed: do not try again
            found = self._recorded()
            if found and (self.migration or not found.ended):  # otherwise it is an earlier migration
                self.migration = found
            self._link.wait_after(error, self._frozen_left())
            return False

    def _frozen_left(self) -> float | None:
        """Seconds for which the container, which may be the destination's by now, may stay frozen; None if it is not.

        They count from the freeze; after an interruption, `migrator resume` starts with the full time.
        """
        if self.migration is None or self.migration.state not in (State.OFFERED, State.DUMPED):
            return None
        now, still = time.monotonic(), self.migration.still_since
        since = still if self.begun <= still <= now else self.begun
        return since + self.move.max_downtime - now

    # --- forward ---

    def _ahead(self) -> None:
        if self.migration and self.migration.state is State.DUMPING:
            freeze_and_offer.heal(self.migration)
        if self.migration:
            send_disk.choose(self.request, self.migration)
        while stage := self._next(there := self._link.connect()):  # a stage may have made a new connection
            container_lock.check_interrupted()  # in case third-party code swallowed the exception
            # An offer that got lost is made again unchanged, because the container is frozen.
            offered = self.migration is not None and self.migration.state is State.OFFERED
            if stage in ("prepare-data", "create-dump") and self.plan is None and not offered:
                self.plan = self._look(there)
            {"prepare-data": self._prepare, "import-data": self._import, "create-dump": self._dump,
             "restore-dump": self._restore, "finish": self._finish, "rollback": self._roll_back}[stage](there)
            self._link.progressed()

    def _next(self, there: Connection) -> str:
        if self.migration is None:
            return "prepare-data"
        answer = ask_state.ask(there, self.migration.id)
        stage = step(self.migration.state, ask_state.told(answer, self.migration))
        if stage == "prepare-data":  # before anything is looked at there
            same_host.require(self.request.destination, self.migration, there, answer)
        if stage == "create-dump" and self.migration.state is State.PREPARED and self._more_rounds():
            return "prepare-data"
        return stage

    def _more_rounds(self) -> bool:
        rule, why = plan.stop(self._rounds(), self.move.max_rounds)
        if rule:
            say("rounds", f"No more rounds: {why}.", rule=rule, rounds=len(self._rounds()))
        return not rule

    def _rounds(self) -> tuple[Round, ...]:
        return Round.sent(self.migration.data.rounds) if self.migration else ()

    def _look(self, there: Connection) -> Plan:
        """The preflight, and the plan that follows from it."""
        examine.require_running(self.container)
        bridges = self.migration.begun.bridges if self.migration else None
        memory = send_disk.with_memory(self.request, self.migration)
        looked = examine.before_stage(self.request, self.move.ignore, self.container, there, full=True,
                                      bridges=bridges, memory=memory, known_copy=self.migration is not None)
        found = Plan(self.container.name, there.peer_host, looked.disk_bytes,
                     looked.container.memory if memory else None, self.move.max_rounds,
                     self.move.max_downtime, self._rounds(), self.move.stop_timeout, bandwidth.measure(there))
        say("plan", found.text, **found.to_json())
        return found

    def _prepare(self, there: Connection) -> None:
        disk_bytes = self.plan.disk_bytes if self.plan else 0
        done = send_disk.carry_out(self.request, self.journal, self.migration, self.container, there, disk_bytes,
                                   bwlimit=self.move.bwlimit, move=self.move)
        self.migration = self._recorded()
        if self.plan:
            self.plan = dataclasses.replace(self.plan, rounds=self._rounds())
        say("round", f"Round {done.data['round']}: {size(done.data['bytes'])} in {duration(done.data['seconds'])}.",
            **{key: done.data[key] for key in ("round", "full", "bytes", "wire_bytes", "resumed_bytes", "seconds")})

    def _recorded(self) -> Migration | None:
        return self.journal.latest(self.container.name, self.container.lxcpath, Role.SOURCE)

    def _import(self, there: Connection) -> None:
        there.call(Import(id=self._of.id))

    @property
    def _of(self) -> Migration:
        """The migration; exists from the first round on."""
        if self.migration is None:
            raise InternalError(reason="no migration has begun")
        return self.migration

    def _dump(self, there: Connection) -> None:
        if self.plan and self._of.state is State.PREPARED:
            say("freeze" if self._of.memory else "stop", self.plan.prediction, **self.plan.to_json())
        done = freeze_and_offer.carry_out(self.request, self.move, self._of, self.container, there, link=self._link)
        self.dumped = done.data
        self._runs_there(done.data.get("running_for"))

    def _restore(self, there: Connection) -> None:
        """The restore gets what is left of the time that the container may be frozen."""
        offer.settle(self._of, State.OWNED)
        left = self._frozen_left()
        if left is None or left <= 0:
            raise DowntimeExceeded(name=self._of.name, seconds=f"{self.move.max_downtime:g}")
        standing.require(self._of, "restore-dump", next_commands.anew(self._of))
        self._of.note("leave", leave=leave.given(self._of.handover.leave, left))
        done = there.call_and_go(Restore(id=self._of.id, limit=left), **offer.limits(left),
                                 within=lambda: offer.word(self._of))
        self._runs_there(done.running_for)

    def _runs_there(self, seconds: object) -> None:
        """It has been running there for that many seconds; None if it is not running yet."""
        if isinstance(seconds, int | float):
            still = time.monotonic() - seconds - self._of.still_since
            # Negative if it was stopped before this host was rebooted.
            self.still_seconds = still if still >= 0 else None

    def _finish(self, there: Connection) -> None:
        self.stopped_there = end_copy.carry_out(self._of, there).data["stopped_there"]

    def _roll_back(self, there: Connection) -> None:
        self.ended = give_back.roll_back(self._of, lambda: give_back.tell(self._of, there))

    # --- back ---

    def _back(self, error: DocumentedError) -> None:
        """After a failure: make the container run, here if possible. Returns only if it turns out to run there."""
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
            advised = isinstance(error, OutcomeError) or self.migration.copy.gone or (
                isinstance(error, OutOfOrder) and origins.is_another(self.migration))
            if not advised:  # that error says how to go on
                does = "stays as it is" if isinstance(error, ContainerNotRunning) else "keeps running"
                log.info(f"{self.migration.name} {does} here, and what has been sent is kept. Continue with: "
                         f"{next_commands.again('create-dump', self.migration)}")
            raise error

    def _give_up(self, error: DocumentedError) -> None:
        """Take the token back and thaw; raises SourceStateUnknown if the destination does not answer."""
        cause = cause_of(error)
        log.warning(f"{cause} Rolling back this attempt.")
        migration = self._of
        try:
            done = give_back.roll_back(migration, self._tell)
        except (BackThere, GoneThere, RunsUnrecorded, StoppedThere):
            raise
        except AlreadyRuns:
            log.warning(f"{migration.name} runs on {migration.begun.destination_host} already.")
            self._try_finish(error)
            return
        if isinstance(cause, Interrupted) or not (done.data["thawed"] or origins.is_there(migration)):
            log.info(done.text)  # where it is now; it may have been destroyed meanwhile and not run again
            raise cause
        runs_again = outcome(SourceRunsAgain, memory=migration.memory and bool(done.data["thawed"]))
        raise runs_again(cause, name=migration.name, next=next_commands.anew(migration)) from error

    def _tell(self) -> str:
        """Have the destination give the token back."""
        return self._over_any_connection(lambda there: give_back.tell(self._of, there))

    def _try_finish(self, error: DocumentedError) -> None:
        """It runs there; what is left to do needs a working connection."""
        try:
            self._over_any_connection(self._finish)
        except DocumentedError as trouble:
            log.warning(f"{trouble} {self._of.name} runs on {self._of.begun.destination_host}; do the rest with: "
                        f"{next_commands.next_command(self._of)}")
            raise error from trouble

    def _over_any_connection(self, call: Callable[[Connection], T]) -> T:
        """Call over the existing connection or a new one; while the container is frozen, for as long as it may stay so.

        If an earlier connection's work still has the container locked there, that gets time to end.
        """
        begun, old = time.monotonic(), self._link.there
        while True:
            try:
                return call(self._link.connect())
            except DocumentedError as error:
                if old and isinstance(error, ConnectionLost | ProtocolError):
                    old = None
                    self._link.close()
                    continue
                busy = begun + BUSY_LIMIT - time.monotonic() if isinstance(error, Busy) else 0.0
                self._link.wait_after(error, max(self._frozen_left() or 0.0, busy))

    # --- what is said ---

    def _result(self) -> Result:
        migration = self._of
        removed = self._undefine() if self.move.undefine_source else []
        predicted = self.plan.still_seconds if self.plan else None
        word = "frozen" if migration.memory else "stopped"
        seconds = time.monotonic() - self.begun
        host = migration.begun.destination_host
        text = f"{migration.name} has moved to {next_commands.moved_to(migration)} in {duration(seconds)}."
        if self.still_seconds is not None:
            text += f" {plan.compared(predicted, self.still_seconds, self.dumped.get('stop_seconds'))}"
        gone = not self.container.config_file.is_file()
        kept = "" if gone else f" The stopped copy is kept here until: {next_commands.command('cleanup', migration)}"
        return Result({
            "migration": migration.id, "name": migration.name, "stage": self.command, "already": False,
            "destination": host, "new_name": migration.other_name,
            "rounds": [dataclasses.asdict(each) for each in self._rounds()],
            f"{word}_seconds": None if self.still_seconds is None else round(self.still_seconds, 3),
            f"predicted_{word}_seconds": None if predicted is None else round(predicted, 3),
            **{key: self.dumped.get(key) for key in ("increment", "memory", "send_seconds",
                                                     "dump_seconds" if migration.memory else "stop_seconds")},
            "seconds": round(seconds, 3), "removed": removed, "stopped_there": self.stopped_there,
        }, text + kept)

    def _undefine(self) -> list[str]:
        cleaner = Cleaner(dry_run=False)
        moved_copy.clean_moved(cleaner, self._of)
        return cleaner.removed
