# SPDX-License-Identifier: GPL-2.0-or-later
"""A move that is being driven: what was asked for, and how far it has come."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from migrator.base.result import Result
from migrator.errors import InternalError
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Role, State
from migrator.transfer.plan import Plan, Round
from stages.steps.options import MoveOptions, MoveRequest


@dataclasses.dataclass
class Move:
    """The driver's stages read it, and enter what they have done."""

    command: str  # the command that drives
    request: MoveRequest
    options: MoveOptions
    journal: Journal
    container: lxc.Container
    migration: Migration | None
    begun: float = dataclasses.field(default_factory=time.monotonic)
    still_seconds: float | None = None  # for how long it was frozen, or with --no-memory stopped
    dumped: dict[str, Any] = dataclasses.field(default_factory=dict)
    ended: Result | None = None  # by a rollback
    stopped_there: str = ""  # what finish said of a container that does not run there
    plan: Plan | None = None

    @property
    def started(self) -> Migration:
        """The migration; exists from the first round on."""
        if self.migration is None:
            raise InternalError(reason="no migration has begun")
        return self.migration

    def recorded(self) -> Migration | None:
        """The latest migration of this container, as the journal has it."""
        return self.journal.latest(self.container.name, self.container.lxcpath, Role.SOURCE)

    def rounds(self) -> tuple[Round, ...]:
        """What has been sent of the disk."""
        return Round.sent(self.migration.data.rounds) if self.migration else ()

    def frozen_left(self) -> float | None:
        """Seconds for which the container, which may be the destination's by now, may stay frozen; None if it is not.

        They count from the freeze; after an interruption, `migrator resume` starts with the full time.
        """
        if self.migration is None or self.migration.state not in (State.OFFERED, State.DUMPED):
            return None
        now, still = time.monotonic(), self.migration.still_since
        since = still if self.begun <= still <= now else self.begun
        return since + self.options.max_downtime - now
