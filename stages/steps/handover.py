# SPDX-License-Identifier: GPL-2.0-or-later
"""From the moment the container is frozen or stopped until the destination has it: what all ways have in common.

The disk, and the memory if it comes along, are taken at one instant and sent, the copy here is fenced, and the token is
offered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from msgspec import UNSET

from migrator.base import programs
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import autostart, leave, standing
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded
from migrator.host import btrfs, lxc
from migrator.record import container_lock, next_commands
from migrator.record.detail import BeforeStill, Figures
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event
from migrator.transfer import sender
from migrator.transfer.messages import DumpBegin, IncrementTransfer, Transfer
from migrator.transfer.rpc import Connection
from stages.steps import changed_since, offer
from stages.steps.options import StandstillOptions
from stages.steps.reconnect import Link

INCREMENT = "increment"  # the spooled file with the last disk changes


class Handover(ABC):
    """One create-dump: its steps in their order, and the way back from each."""

    def __init__(self, standstill: StandstillOptions, migration: Migration, container: lxc.Container,
                 there: Connection, link: Link | None = None) -> None:
        self.migration = migration
        self.container = container
        self.there = there
        self.max_downtime = standstill.max_downtime
        self.ignore = standstill.ignore
        self.link = link  # the driver's, which can make new connections
        self.one_shot = link is not None
        self.layout = Layout(container.lxcpath, container.name, migration.id)
        self.base = self.layout.snapshot(len(migration.data.rounds))
        self.last = self.layout.snapshot(len(migration.data.rounds) + 1)
        self.still_since = 0.0  # by time.time(), to show to people
        self._still_since = 0.0  # by time.monotonic(), for limits
        self.fenced = False

    def run(self) -> Result:
        """Do it; the container goes on here if anything fails before the token is offered."""
        self._refuse_autostart()  # before anything is frozen in vain
        # A number that no dump has had: a message still in flight from an earlier dump does not match it.
        self.migration.note("attempt", attempt=offer.attempt(self.migration) + 1)
        self.there.call(DumpBegin(id=self.migration.id, attempt=offer.attempt(self.migration),
                                  memory=self.migration.memory))
        btrfs.delete(self.last)
        try:
            self.prepare()
            programs.learn()
            btrfs.sync(self.container.rootfs)  # dirty data would otherwise be written while the container is frozen
            self.still_since, self._still_since = time.time(), time.monotonic()
            self.migration.move(Event.FREEZE, still_monotonic=self._still_since, **self.record().to_json())
        except BaseException:
            self.unprepared()
            raise
        offering = False  # whether an offer may be on record; known here even if the journal cannot be read
        try:
            figures = self.take()
            if not self.fenced:
                self.fence()
            restore_within = self.left() if self.one_shot else None
            self.stop_clock()
            # What we said we would give up must not be offered, even if the exception was swallowed.
            container_lock.check_interrupted()
            offering = True
            self.migration.move(Event.OFFER, figures=figures.to_json(),
                                leave=leave.given(self.migration.handover.leave, restore_within or leave.BY_HAND))
            self.unwatched()
        except BaseException as error:
            with container_lock.held_back():
                try:
                    if offering:
                        offer.withdraw(self.migration)
                    offer.give_up(self.migration, self.there, as_ours(error), self.unwatched)
                finally:
                    self.left_alone()
        answer = offer.make(self.migration, self.there, restore_within=restore_within)
        with container_lock.held_back(raised=self.one_shot):  # by hand: done, with nothing left to undo
            done = self.result(figures, time.monotonic() - self._still_since)
        restored = {} if answer.running_for is UNSET else {"running_for": answer.running_for}
        return dataclasses.replace(done, data=done.data | restored)

    # --- what each way does in its own manner ---

    @abstractmethod
    def prepare(self) -> None:
        """Everything that can be done while the container runs."""

    @abstractmethod
    def unprepared(self) -> None:
        """Take back what `prepare` has changed in the container, which will not come to a stand after all."""

    @abstractmethod
    def record(self) -> BeforeStill:
        """What the journal must hold before the container is touched: enough to give it back after a crash."""

    @abstractmethod
    def take(self) -> Figures:
        """Freeze or stop it, and send its final state."""

    @abstractmethod
    def stop_clock(self) -> None:
        """From now on nobody gives it back because its time is up.

        Raises DowntimeExceeded if the watchdog has just done so, and ContainerChanged if someone else has.
        """

    @abstractmethod
    def unwatched(self) -> None:
        """It was given back or the offer is on record: it need not be watched any more."""

    @abstractmethod
    def left_alone(self) -> None:
        """This program could not give it back: from now on that is up to the watchdog alone."""

    @abstractmethod
    def result(self, figures: Figures, still: float) -> Result:
        """The result when the destination has it, `still` seconds after it was frozen or stopped."""

    # --- steps that all have in common ---

    def send_increment(self) -> sender.TransferResult:
        """Send what has changed on the disk since the last round."""
        with self.migration.step("increment") as outcome:
            changed_since.refuse_nested(self.migration, self.container.rootfs, self.ignore)
            made = btrfs.snapshot(self.container.rootfs, self.last, read_only=True)
            sent = self.send(
                IncrementTransfer(id=self.migration.id, attempt=offer.attempt(self.migration), uuid=made.uuid,
                                  behind=self.one_shot),
                lambda stack: [sender.SourceFile(INCREMENT, stack.enter_context(
                    btrfs.send(self.last, self.base, limit=self.left())))],
            )
            sent.tell(outcome)
        return sent

    def send(self, asks: Transfer, files: Callable[[contextlib.ExitStack], list[sender.SourceFile]],
             watch: Callable[[int, int], None] | None = None) -> sender.TransferResult:
        """Send part of it; if the connection breaks, the rest over a new one if that can be had at once.

        `files` opens what is sent, from the beginning for each connection.
        """
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    return sender.send_files(self.there, asks, files(stack), progress=watch or self.watch)
            except DocumentedError as error:
                if self.link is None:
                    raise
                self.there = self.link.at_once(error, self.left())

    def increment_commands(self) -> list[tuple[str, list[str]]]:
        """`send_increment` for --dry-run."""
        here, there = this_host(), self.there.peer_host
        return [
            (here, btrfs.snapshot_command(self.container.rootfs, self.last, read_only=True)),
            (here, btrfs.send_command(self.last, self.base)),
            (there, ["tee", str(self.target.spool / INCREMENT)]),
        ]

    @property
    def target(self) -> Layout:
        """The layout on the destination."""
        migration = self.migration
        return Layout(Path(migration.begun.destination_lxcpath), migration.other_name, migration.id)

    def fence(self) -> None:
        """From the offer on this host must not start the container again, neither by hand nor at boot after a crash.

        Raises OutOfOrder as `_refuse_autostart` does, once the fence is written.
        """
        container = self.container
        text = container_config.text_of(container.config_file)
        container_config.fence(container.folder, text, self.migration.id, standing.message(self.migration))
        self.fenced = True
        self._refuse_autostart()

    def _refuse_autostart(self) -> None:
        """Raise OutOfOrder while an lxc-autostart is running; one that begins once there is a fence respects it."""
        autostart.refuse(self.migration, "create-dump", next_commands.again("create-dump", self.migration))

    def left(self) -> float:
        """Seconds for which the container may still be frozen or stopped; raises DowntimeExceeded if there are none."""
        left = self._still_since + self.max_downtime - time.monotonic()
        if left <= 0:
            raise DowntimeExceeded(name=self.container.name, seconds=f"{self.max_downtime:g}")
        return left

    def watch(self, _done: int, _resumed: int) -> None:
        """Called with the progress of a transfer."""
        self.left()
