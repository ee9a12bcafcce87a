# SPDX-License-Identifier: GPL-2.0-or-later
"""A stage has failed after the freeze: where is the container now?"""

from __future__ import annotations

from typing import Any

from migrator.errors import MigratorError
from migrator.errors.documented import DocumentedError


class OutcomeError(MigratorError):
    """Base of the three outcomes; `cause` is the error that led to it."""

    def __init__(self, cause: DocumentedError, **fields: Any) -> None:
        self.cause = cause
        super().__init__(cause=str(cause), cause_cure=cause.hint, **fields)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"cause": self.cause.to_json()}


class SourceRunsAgain(OutcomeError):
    """{cause} The container {name} was thawed and keeps running here."""

    status = 3
    cure = "{cause_cure} Try again with: {next}"


class SourceStillFrozen(OutcomeError):
    """{cause} The container {name} is still frozen on {source}, with all its memory."""

    status = 4
    cure = "{cause_cure} Continue with: {next} -- or give up and thaw it with: {rollback}"


class SourceStateUnknown(OutcomeError):
    """{cause} Whether {destination} may run the container {name} is unknown; it is kept frozen here."""

    status = 5
    cure = """Once {destination} can be reached again: {rollback} -- if it is lost for good, see what forcing it would
        risk: migrator rollback {name} --force {path}"""


# The same with --no-memory.


class SourceStartedAgain(SourceRunsAgain):
    """{cause} The container {name} was started again on this host."""


class SourceStillStopped(SourceStillFrozen):
    """{cause} The container {name} is stopped on {source}, with all of its disk."""

    cure = "{cause_cure} Continue with: {next} -- or give up and start it again there with: {rollback}"


class SourceStoppedUnknown(SourceStateUnknown):
    """{cause} Whether {destination} may run the container {name} is unknown; it is kept stopped here."""


def outcome(cls: type[OutcomeError], *, memory: bool) -> type[OutcomeError]:
    """One of the three outcomes, as it is with or without memory."""
    stopped = {SourceRunsAgain: SourceStartedAgain, SourceStillFrozen: SourceStillStopped,
               SourceStateUnknown: SourceStoppedUnknown}
    return cls if memory else stopped[cls]
