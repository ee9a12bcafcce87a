# SPDX-License-Identifier: GPL-2.0-or-later
"""After a stage has failed, the driver makes the container run wherever it may: here if possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from migrator.base import log
from migrator.copies import origins
from migrator.errors import Interrupted
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
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import OutcomeError, SourceRunsAgain, outcome
from migrator.errors.this_host import Busy
from migrator.record import next_commands
from migrator.record.states import State
from migrator.transfer.rpc import Connection
from stages.steps import drive_stages, give_back
from stages.steps.drive_move import Move
from stages.steps.reconnect import Link, cause_of

T = TypeVar("T")
BUSY_LIMIT = 60.0  # seconds that the destination may take to end what an earlier connection began


class WayBack:
    """From wherever the move has come to, over any connection that can be had."""

    def __init__(self, move: Move, link: Link) -> None:
        self.move = move
        self._link = link

    def take(self, error: DocumentedError) -> None:
        """After a failure: make the container run, here if possible. Returns only if it turns out to run there."""
        migration = self.move.migration = self.move.recorded()
        if migration is None or migration.ended:
            raise error
        interrupted = isinstance(error, Interrupted)
        state = migration.state
        if state is State.FINISHING:
            self._try_finish(error)
        elif state in (State.OFFERED, State.DUMPED) or interrupted:
            self._give_up(error)
        else:
            advised = isinstance(error, OutcomeError) or migration.copy.gone or (
                isinstance(error, OutOfOrder) and origins.is_another(migration))
            if not advised:  # that error says how to go on
                does = "stays as it is" if isinstance(error, ContainerNotRunning) else "keeps running"
                log.info(f"{migration.name} {does} here, and what has been sent is kept. Continue with: "
                         f"{next_commands.again('create-dump', migration)}")
            raise error

    def _give_up(self, error: DocumentedError) -> None:
        """Take the token back and thaw; raises SourceStateUnknown if the destination does not answer."""
        cause = cause_of(error)
        log.warning(f"{cause} Rolling back this attempt.")
        migration = self.move.started
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
        return self._over_any_connection(lambda there: give_back.tell(self.move.started, there))

    def _try_finish(self, error: DocumentedError) -> None:
        """It runs there; what is left to do needs a working connection."""
        try:
            self._over_any_connection(lambda there: drive_stages.finish(self.move, there))
        except DocumentedError as trouble:
            migration = self.move.started
            log.warning(f"{trouble} {migration.name} runs on {migration.begun.destination_host}; do the rest with: "
                        f"{next_commands.next_command(migration)}")
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
                self._link.wait_after(error, max(self.move.frozen_left() or 0.0, busy))
