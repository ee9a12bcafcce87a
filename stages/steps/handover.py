# SPDX-License-Identifier: GPL-2.0-or-later
"""From the moment the container is frozen or stopped until the destination has it, step by step.

The disk, and the memory if it comes along, are taken at one instant and sent, the copy here is fenced, and the token is
offered. How it is brought to a stand, and what is sent then, is up to the `Way`: with its memory or without.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol

from msgspec import UNSET

from migrator.base import programs
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import autostart, leave, standing
from migrator.errors.convert import as_ours
from migrator.host import btrfs
from migrator.record import container_lock, next_commands
from migrator.record.detail import BeforeStill, Figures
from migrator.record.states import Event
from migrator.transfer.messages import DumpBegin
from stages.steps import offer
from stages.steps.standstill import Standstill


class Way(Protocol):
    """What `dump.Dump` (with the memory) and `stop.Stop` (without) do each in its own manner, as a handover calls it.
    """

    fence_first: bool  # whether nobody may start it here from the moment it comes to a stand, not even at boot

    def prepare(self) -> None:
        """Everything that can be done while the container runs."""

    def unprepared(self) -> None:
        """Take back what `prepare` has changed in the container, which will not come to a stand after all."""

    def record(self) -> BeforeStill:
        """What the journal must hold before the container is touched: enough to give it back after a crash."""

    def take(self) -> Figures:
        """Freeze or stop it, and send its final state."""

    def stop_clock(self) -> None:
        """From now on nobody gives it back because its time is up.

        Raises DowntimeExceeded if the watchdog has just done so, and ContainerChanged if someone else has.
        """

    def unwatched(self) -> None:
        """It was given back or the offer is on record: it need not be watched any more."""

    def left_alone(self) -> None:
        """This program could not give it back: from now on that is up to the watchdog alone."""

    def result(self, figures: Figures, still: float) -> Result:
        """The result when the destination has it, `still` seconds after it was frozen or stopped."""


class Handover:
    """One create-dump: its steps in their order, and the way back from each."""

    def __init__(self, standstill: Standstill, way: Way) -> None:
        self.standstill = standstill
        self.way = way
        self.migration = standstill.migration
        self.fenced = False

    def run(self) -> Result:
        """Do it; the container goes on here if anything fails before the token is offered."""
        self._refuse_autostart()  # before anything is frozen in vain
        # A number that no dump has had: a message still in flight from an earlier dump does not match it.
        self.migration.note("attempt", attempt=offer.attempt(self.migration) + 1)
        self.standstill.there.call(DumpBegin(id=self.migration.id, attempt=offer.attempt(self.migration),
                                             memory=self.migration.memory))
        btrfs.delete(self.standstill.last)
        try:
            self.way.prepare()
            programs.learn()
            # Dirty data would otherwise be written while the container is frozen.
            btrfs.sync(self.standstill.container.rootfs)
            self.standstill.begins()
            self.migration.move(Event.FREEZE, still_monotonic=self.standstill.since_monotonic,
                                **self.way.record().to_json())
        except BaseException:
            self.way.unprepared()
            raise
        offering = False  # whether an offer may be on record; known here even if the journal cannot be read
        try:
            if self.way.fence_first:
                self._fence()
            figures = self.way.take()
            if not self.fenced:
                self._fence()
            restore_within = self.standstill.left() if self.standstill.one_shot else None
            self.way.stop_clock()
            # What we said we would give up must not be offered, even if the exception was swallowed.
            container_lock.check_interrupted()
            offering = True
            self.migration.move(Event.OFFER, figures=figures.to_json(),
                                leave=leave.given(self.migration.handover.leave, restore_within or leave.BY_HAND))
            self.way.unwatched()
        except BaseException as error:
            with container_lock.held_back():
                try:
                    if offering:
                        offer.withdraw(self.migration)
                    offer.give_up(self.migration, self.standstill.there, as_ours(error), self.way.unwatched)
                finally:
                    self.way.left_alone()
        answer = offer.make(self.migration, self.standstill.there, restore_within=restore_within)
        with container_lock.held_back(raised=self.standstill.one_shot):  # by hand: done, with nothing left to undo
            done = self.way.result(figures, time.monotonic() - self.standstill.since_monotonic)
        restored = {} if answer.running_for is UNSET else {"running_for": answer.running_for}
        return dataclasses.replace(done, data=done.data | restored)

    def _fence(self) -> None:
        """From the offer on this host must not start the container again, neither by hand nor at boot after a crash.

        Raises OutOfOrder as `_refuse_autostart` does, once the fence is written.
        """
        container = self.standstill.container
        text = container_config.text_of(container.config_file)
        container_config.fence(container.folder, text, self.migration.id, standing.message(self.migration))
        self.fenced = True
        self._refuse_autostart()

    def _refuse_autostart(self) -> None:
        """Raise OutOfOrder while an lxc-autostart is running; one that begins once there is a fence respects it."""
        autostart.refuse(self.migration, "create-dump", next_commands.again("create-dump", self.migration))
