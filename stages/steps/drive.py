# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver of `migrator migrate` and `migrator resume`: runs stage by stage, as the states of both hosts require.

If a stage fails, the container is made to run wherever it may: see `drive_back`.
"""

from __future__ import annotations

from migrator.base.result import Result
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.record import container_lock
from migrator.record.states import State
from stages.steps import drive_next, drive_plan, drive_result, drive_stages, freeze_and_offer, send_disk
from stages.steps.drive_back import WayBack
from stages.steps.drive_move import Move
from stages.steps.reconnect import Link


class Drive:
    """Takes one stage after the other, each chosen by the states of both hosts, until the migration has ended."""

    def __init__(self, move: Move) -> None:
        self.move = move
        self._link = Link(move.request.connect, move.request.destination, move.options.reconnect)
        self._back = WayBack(move, self._link)

    def run(self) -> Result:
        with self._link:
            try:
                while not self._came_through():
                    pass
            except BaseException as error:
                # It ends either way, and its outcome says more than the interruption.
                with container_lock.held_back(raised=False):
                    self._back.take(as_ours(error))
        return self.move.ended or drive_result.result(self.move)

    def _came_through(self) -> bool:
        """Go to the end; False if the connection was lost on the way and another try makes sense."""
        try:
            self._ahead()
            return True
        except DocumentedError as error:
            container_lock.check_interrupted()  # it came while the container was being thawed: do not try again
            found = self.move.recorded()
            if found and (self.move.migration or not found.ended):  # otherwise it is an earlier migration
                self.move.migration = found
            self._link.wait_after(error, self.move.frozen_left())
            return False

    def _ahead(self) -> None:
        move = self.move
        if move.migration and move.migration.state is State.DUMPING:
            freeze_and_offer.heal(move.migration)
        if move.migration:
            send_disk.choose(move.request, move.migration)
        # A stage may have made a new connection.
        while stage := drive_next.next_stage(move, there := self._link.connect()):
            container_lock.check_interrupted()  # in case third-party code swallowed the exception
            # An offer that got lost is made again unchanged, because the container is frozen.
            offered = move.migration is not None and move.migration.state is State.OFFERED
            if stage in ("prepare-data", "create-dump") and move.plan is None and not offered:
                move.plan = drive_plan.make(move, there)
            drive_stages.take(stage, move, there, self._link)
            self._link.progressed()
