# SPDX-License-Identifier: GPL-2.0-or-later
"""From the moment that the container stands still to the one that the destination has it: what all ways have in common.

Disk, and memory where it comes along, are taken of one instant and sent, the copy here is fenced, the token is offered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import UNSET

from migrator.base import programs
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import autostart, leave, standing
from migrator.errors.containers import ContainerChanged
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded
from migrator.host import btrfs, lxc, roots
from migrator.record import container_lock, next_commands
from migrator.record.detail import Figures
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event
from migrator.transfer import sender
from migrator.transfer.messages import DumpBegin, IncrementTransfer, Transfer
from migrator.transfer.rpc import Connection
from stages.steps import offer
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
        self.link = link  # of the driver, that can make new connections
        self.one_shot = link is not None
        self.layout = Layout(container.lxcpath, container.name, migration.id)
        self.base = self.layout.snapshot(len(migration.data.rounds))
        self.last = self.layout.snapshot(len(migration.data.rounds) + 1)
        self.still_since = 0.0  # by time.time(), for people
        self._still_since = 0.0  # by time.monotonic(), for limits
        self.fenced = False

    def run(self) -> Result:
        """Do it; the container runs on here when anything fails before the token was offered."""
        self._refuse_autostart()  # before anything comes to a stand in vain
        # A number that no dump has had: what is still on its way of an earlier one finds another number there.
        self.migration.note("attempt", attempt=offer.attempt(self.migration) + 1)
        self.there.call(DumpBegin(id=self.migration.id, attempt=offer.attempt(self.migration),
                                  memory=self.migration.memory))
        btrfs.delete(self.last)
        self.prepare()
        programs.learn()
        btrfs.sync(self.container.rootfs)  # what is not on disk yet would be written while it stands still
        self.still_since, self._still_since = time.time(), time.monotonic()
        self.migration.move(Event.FREEZE, still_monotonic=self._still_since, **self.record())
        offering = False  # whether an offer may be on record: where the journal cannot be read, this still knows
        try:
            figures = self.take()
            if not self.fenced:
                self.fence()
            restore_within = self.left() if self.one_shot else None
            self.stop_clock()
            # What was said to be given up is not offered, wherever the exception was lost.
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
        with container_lock.held_back(raised=self.one_shot):  # by hand it is done: there is nothing left to be undone
            done = self.result(figures, time.monotonic() - self._still_since)
        restored = {} if answer.running_for is UNSET else {"running_for": answer.running_for}
        return dataclasses.replace(done, data=done.data | restored)

    # --- what each way does in its own manner ---

    @abstractmethod
    def prepare(self) -> None:
        """Everything that can be done while the container runs."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the journal must know before the container is touched: enough to give it back after a crash."""

    @abstractmethod
    def take(self) -> Figures:
        """Bring it to a stand and send what makes it up."""

    @abstractmethod
    def stop_clock(self) -> None:
        """Nobody gives it back for its time being up.

        Raises DowntimeExceeded where the watchdog has done so, and ContainerChanged where somebody else has.
        """

    @abstractmethod
    def unwatched(self) -> None:
        """It was given back, or the offer is on record: nobody has to watch over it any more."""

    @abstractmethod
    def left_alone(self) -> None:
        """This program could not give it back: who watches over it is alone with that now."""

    @abstractmethod
    def result(self, figures: Figures, still: float) -> Result:
        """The destination has it, `still` seconds after it came to a stand."""

    # --- steps that all have in common ---

    def send_increment(self) -> sender.TransferResult:
        """What has changed on the disk since the last round."""
        with self.migration.step("increment") as outcome:
            self._refuse_nested()
            made = btrfs.snapshot(self.container.rootfs, self.last, read_only=True)
            sent = self.send(
                IncrementTransfer(id=self.migration.id, attempt=offer.attempt(self.migration), uuid=made.uuid,
                                  behind=self.one_shot),
                lambda stack: [sender.SourceFile(INCREMENT, stack.enter_context(
                    btrfs.send(self.last, self.base, limit=self.left())))],
            )
            sent.tell(outcome)
        return sent

    def refuse_another_disk(self, init: list[int] | None) -> None:
        """Something may have taken its root file system's place since the preflight: that would be snapshotted.

        `init` as `remains.init_of` has found it. Raises ContainerChanged.
        """
        if init and "rootfs-replaced" not in self.ignore and roots.is_elsewhere(init[0], self.container.rootfs):
            raise ContainerChanged(name=self.container.name, next=next_commands.again("create-dump", self.migration),
                                   reason=f"it lives on another disk, or in another folder, than "
                                          f"{self.container.rootfs}")

    def _refuse_nested(self) -> None:
        """A snapshot leaves subvolumes out, and any user may have made one since the preflight has looked for them.

        Raises ContainerChanged, and SnapshotFailed where that cannot be told.
        """
        if {"nested-subvolume", "nested-unknown"} & set(self.ignore):
            return
        if found := btrfs.nested(self.container.rootfs):
            raise ContainerChanged(name=self.container.name, next=next_commands.again("create-dump", self.migration),
                                   reason=f"its disk has subvolumes inside, which a snapshot leaves out: {found[0]}")

    def send(self, asks: Transfer, files: Callable[[contextlib.ExitStack], list[sender.SourceFile]],
             watch: Callable[[int, int], None] | None = None) -> sender.TransferResult:
        """Send a part of it; where the connection breaks, the rest over a new one, if that can be had at once.

        `files` opens what is sent, for each connection from its beginning.
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
        """Where things lie on the destination."""
        migration = self.migration
        return Layout(Path(migration.begun.destination_lxcpath), migration.other_name, migration.id)

    def fence(self) -> None:
        """From the offer on this host must not start the container anew: not by hand, and not at boot after a crash.

        Raises OutOfOrder, as `_refuse_autostart`, once it is written.
        """
        container = self.container
        text = container_config.text_of(container.config_file)
        container_config.fence(container.folder, text, self.migration.id, standing.message(self.migration))
        self.fenced = True
        self._refuse_autostart()

    def _refuse_autostart(self) -> None:
        """Raises OutOfOrder while an lxc-autostart is under way: one that begins once the fence stands goes by it."""
        autostart.refuse(self.migration, "create-dump", next_commands.again("create-dump", self.migration))

    def left(self) -> float:
        """Seconds that the container may still stand still; raises DowntimeExceeded when there are none."""
        left = self._still_since + self.max_downtime - time.monotonic()
        if left <= 0:
            raise DowntimeExceeded(name=self.container.name, seconds=f"{self.max_downtime:g}")
        return left

    def watch(self, _done: int, _resumed: int) -> None:
        """Progress of a transfer."""
        self.left()
