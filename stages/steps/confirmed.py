# SPDX-License-Identifier: GPL-2.0-or-later
"""Before the source ends its copy: the destination's word that the container runs there.

If the destination can only say so against its own records, or not any more, the migration's id has to be typed.
"""

from __future__ import annotations

from collections.abc import Callable

from migrator.errors import MigratorError, UsageError
from migrator.errors.containers import BackThere, GoneThere, OutOfOrder, RunsUnrecorded
from migrator.errors.ownership import ForceRefused
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.states import State
from stages.steps import unrecorded


def require(migration: Migration, there: str, state_there: State | None, given: str | None,
            running: Callable[[], object]) -> bool:
    """Whether the destination, `there`, has on record what is ended there and must be told of the end.

    `running` asks it; its state is `state_there`; `given` is the id typed, None if nothing was forced. Raises what the
    destination says, OutOfOrder, and ForceRefused.
    """
    finishing = migration.state is State.FINISHING
    if finishing and state_there is None:
        _require_id(migration, given, there, "does not know the migration")
        return False
    try:
        running()
    except GoneThere:
        if not finishing:
            raise
        _require_id(migration, given, there, "does not have it")
    except (BackThere, RunsUnrecorded) as error:
        if not finishing:
            _require_choice(migration, given, error)
        return state_there is not None
    except UsageError:  # its journal is an older one, and the container has stopped since
        if not finishing or state_there not in (*unrecorded.OLDER, State.RESTORING):
            raise
        _require_id(migration, given, there, "does not have it on record")
        return False
    return True


def _require_id(migration: Migration, given: str | None, there: str, lacks: str) -> None:
    """For a destination that once confirmed that it runs the container and now `lacks` it.

    Raises OutOfOrder if nothing was forced, else ForceRefused.
    """
    command = next_commands.command("finish", migration, "--force")
    unknown = f"{there} {lacks}"
    if given is None:
        raise OutOfOrder(stage="finish", missing=f"{unknown} any more, or is not the host that it was sent to",
                         next=f"see what it means to end it without that host: {command}")
    _require_given(migration, given, unknown, (
        f"{migration.name} has run there, as is recorded here, so the frozen copy is no longer of use: it is ended, "
        f"and fenced on disk. If {there} is not the host that it went to, name that one with -d instead."))


def _require_choice(migration: Migration, given: str | None, error: MigratorError) -> None:
    """For a destination that runs it against its own records; raises that `error` if nothing was forced."""
    if given is None:
        raise error
    _require_given(migration, given, str(error).rstrip("."),
                   "The halted copy here, as it was before the move, is ended, and fenced on disk.")


def _require_given(migration: Migration, given: str, why: str, risk: str) -> None:
    if given != migration.id:
        what = f"{given} is not the id of its migration" if given else "the id of its migration is missing"
        raise ForceRefused(name=migration.name, done="finished", reason=f"{what}, and {why}", risk=risk,
                           command=next_commands.command("finish", migration, "--force", migration.id))
