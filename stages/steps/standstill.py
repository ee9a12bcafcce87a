# SPDX-License-Identifier: GPL-2.0-or-later
"""The time for which a container stands still: how much of it is left, and what is sent within it, with memory or not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded
from migrator.host import btrfs, lxc
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.transfer import sender
from migrator.transfer.messages import IncrementTransfer, Transfer
from migrator.transfer.rpc import Connection
from stages.steps import changed_since, offer
from stages.steps.options import StandstillOptions
from stages.steps.reconnect import Link

INCREMENT = "increment"  # the spooled file with the last disk changes


class Standstill:
    """One attempt to take a container's final state: the connection that it goes over, and the time that it may take.
    """

    def __init__(self, options: StandstillOptions, migration: Migration, container: lxc.Container, there: Connection,
                 link: Link | None = None) -> None:
        self.migration = migration
        self.container = container
        self.there = there  # a new one if it broke and `link` could replace it
        self.max_downtime = options.max_downtime
        self.stop_timeout = options.stop_timeout
        self.ignore = options.ignore
        self.link = link  # the driver's, which can make new connections
        self.one_shot = link is not None
        self.layout = Layout(container.lxcpath, container.name, migration.id)
        self.base = self.layout.snapshot(len(migration.data.rounds))
        self.last = self.layout.snapshot(len(migration.data.rounds) + 1)
        self.since = 0.0  # by time.time(), to show to people
        self.since_monotonic = 0.0  # by time.monotonic(), for limits

    def begins(self) -> None:
        """From now on its time counts: it is about to be frozen or stopped."""
        self.since, self.since_monotonic = time.time(), time.monotonic()

    def left(self) -> float:
        """Seconds for which the container may still be frozen or stopped; raises DowntimeExceeded if there are none."""
        left = self.since_monotonic + self.max_downtime - time.monotonic()
        if left <= 0:
            raise DowntimeExceeded(name=self.container.name, seconds=f"{self.max_downtime:g}")
        return left

    def watch(self, _done: int, _resumed: int) -> None:
        """Called with the progress of a transfer."""
        self.left()

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
