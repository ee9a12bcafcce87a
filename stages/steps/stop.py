# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that moves without its memory: shut down cleanly, and the last disk changes sent."""

from __future__ import annotations

import time

import msgspec

from migrator.base.figures import size
from migrator.base.result import Result, of_dry_run
from migrator.copies import ending, remains
from migrator.errors.containers import ContainerChanged
from migrator.record import next_commands
from migrator.record.detail import BeforeStill, Figures
from migrator.record.next_commands import this_host
from stages.steps import changed_since
from stages.steps.standstill import Standstill


class Stop:
    """Fence, stop, send; the source starts the container again if anything fails before the token is offered."""

    fence_first = True  # between the stop and the offer nobody may start the container, not even at boot

    def __init__(self, standstill: Standstill) -> None:
        self.standstill = standstill
        self.migration = standstill.migration
        self.container = standstill.container

    def described(self) -> Result:
        """For --dry-run: the commands of both hosts."""
        return of_dry_run([(this_host(), ending.stop_command(self.container)), *self.standstill.increment_commands()])

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def unprepared(self) -> None:
        """So nothing is taken back."""

    def record(self) -> BeforeStill:
        found = remains.record(self.container)
        changed_since.refuse_another_disk(self.migration, found.init.pid if found.init else None, self.container.rootfs,
                                          self.standstill.ignore)
        if self.container.is_ephemeral:
            raise changed_since.error(
                self.migration, "it is ephemeral, and LXC would destroy it, disk and all, as soon as it is stopped")
        return msgspec.structs.replace(found, stopped_at=self.standstill.since,
                                       stop_timeout=self.standstill.stop_timeout, stopping=False)

    def take(self) -> Figures:
        self.migration.note("stopping", stopping=True)
        begun = time.monotonic()
        with self.migration.step("stop") as outcome:
            killed = ending.stop(self.migration, self.container, self.standstill.stop_timeout)
            outcome.killed = killed
        stop_seconds = time.monotonic() - begun
        self._must_be_stopped()
        self.standstill.left()
        increment = self.standstill.send_increment()
        self._must_be_stopped()
        return Figures(increment=increment.raw_bytes, wire_bytes=increment.wire_bytes,
                       stop_seconds=round(stop_seconds, 3), killed=killed, send_seconds=round(increment.seconds, 3))

    def _must_be_stopped(self) -> None:
        """Raise ContainerChanged if it has rebooted in spite of all that, or processes live on without LXC."""
        if self.container.state != "STOPPED" or remains.are_here(self.migration):
            raise ContainerChanged(name=self.container.name, reason="it runs again, though it was stopped",
                                   next=next_commands.command("create-dump", self.migration))

    def stop_clock(self) -> None:
        """What is stopped cannot be thawed, so there is no watchdog."""

    def unwatched(self) -> None:
        """There was no watchdog."""

    def left_alone(self) -> None:
        """There is no watchdog: the next command starts it."""

    def result(self, figures: Figures, still: float) -> Result:
        next_ = next_commands.next_command(self.migration)
        ended = "killed" if figures.killed else "stopped"
        return Result(
            {"migration": self.migration.id, "name": self.container.name, "stage": "create-dump", "already": False,
             "stopped_at": self.standstill.since, "stopped_seconds": round(still, 3), **figures.to_json(),
             "next": next_},
            f"Sent {size(figures.increment)} of disk changes. {self.container.name} was {ended} within "
            f"{figures.stop_seconds or 0:.2f} s, {still:.2f} s ago; {self.standstill.there.peer_host} owns it now. "
            f"Next: {next_}",
        )
