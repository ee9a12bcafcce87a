# SPDX-License-Identifier: GPL-2.0-or-later
"""`resume` on the source: get the container to run wherever it may, and take the stages that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.base import log
from migrator.base.result import Result
from migrator.copies import after_crash, older_journal, resume_rules, standing
from migrator.errors import Interrupted
from migrator.errors.containers import ContainerNotFound, NotKnownThere
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown, outcome
from migrator.host import lxc
from migrator.record import next_commands
from migrator.record.journal import Journal, Migration
from migrator.record.states import Owner, State
from migrator.remote.other_host import connected
from stages.steps import ask_state, force, freeze_and_offer, give_back, resumed
from stages.steps.drive import Drive
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest
from stages.steps.resumed import STAGE

DATA_FLOWS = {State.PREPARING, State.PREPARED}


def go_on(request: MoveRequest, given: Mapping[str, Any], journal: Journal, migration: Migration, *,
          at_boot: bool) -> Result:
    """Give the container back if it has to stay here, or take the stages that are left.

    Options in `given` override those that the migration began with. At boot, only make the container run wherever it
    may.
    """
    older_journal.bring_up(migration)

    def tell() -> str:
        return give_back.tell_over(request.connect, request.destination, migration)

    if migration.ended:
        elsewhere = request.destination != migration.peer
        return force.tell_late(migration, tell, elsewhere=elsewhere) or resumed.ended(migration)
    if migration.state is State.ROLLING_BACK:
        return give_back.roll_back(migration, tell)
    if at_boot and migration.state in DATA_FLOWS:
        return _waits(migration, " What has been sent is kept.")
    if at_boot and migration.state is State.DUMPING:
        freeze_and_offer.heal(migration)
        return _waits(migration)
    standing.restore_silence(migration)
    if migration.state in (State.OFFERED, State.DUMPED) and not _can_go_on(request, migration):
        log.warning(f"{request.destination} has lost the memory of {migration.name}, as after a reboot, or its"
                    f" container: it cannot be restored there")
        return give_back.roll_back(migration, tell)
    # Once it is handed over, nothing of it is needed here any more: what is left may have been removed.
    container = lxc.Container(migration.name, migration.lxcpath, defined=migration.owner is Owner.SOURCE)
    options = MoveOptions.resumed(migration, given)
    return Drive(Move(STAGE, request, options, journal, container, migration)).run()


def _waits(migration: Migration, kept: str = "") -> Result:
    """At boot: wait until someone decides. A removed container must not make everything be tried again for ever."""
    resume = next_commands.command(STAGE, migration)
    try:
        state = lxc.told_state(lxc.Container(migration.name, migration.lxcpath))
    except ContainerNotFound:
        return resumed.result(
            migration, f"{after_crash.where(migration)}{kept} Once it is there again, continue with: {resume} -- or "
                       f"give it up: {next_commands.command('rollback', migration)}")
    return resumed.result(migration, f"{migration.name} is {state} on this host, which has the token.{kept} Continue "
                                     f"with: {resume}")


def _can_go_on(request: MoveRequest, migration: Migration) -> bool:
    """Ask the destination, which alone knows; raises SourceStateUnknown if it does not answer."""
    try:
        with connected(request.connect, request.destination) as there:
            answer = ask_state.ask(there, migration.id)
            there_state = ask_state.told(answer, migration)
            if there_state is None:
                raise NotKnownThere(destination=there.peer_host, id=migration.id, name=migration.name,
                                    peer=migration.peer)
    except Interrupted:
        raise
    except DocumentedError as error:
        log.warning(after_crash.note(migration))
        raise outcome(SourceStateUnknown, memory=migration.memory)(
            error, name=migration.name, destination=request.destination,
            rollback=next_commands.command(STAGE, migration), path=next_commands.path(migration),
        ) from error
    stage = resume_rules.on_source(migration.state, there_state, images=answer.images)
    return stage != "rollback" or there_state is not State.OWNED


