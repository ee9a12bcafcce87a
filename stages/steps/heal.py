# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator resume` does on either host, and for every unfinished migration of a host, as at boot.

`migrator.copies.resume_rules` has the decisions; the model in tests/migrator/ tries them all.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from migrator.base import log
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import after_crash, autostart, older_journal, resume_rules, standing
from migrator.errors import Interrupted, MigratorError
from migrator.errors.containers import ContainerNotFound, NoMigration, NotKnownThere, OutOfOrder
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown, outcome
from migrator.host import lxc
from migrator.record import container_lock, lxc_disk, next_commands
from migrator.record.detail import ROOT_CALLER
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Owner, Role, State
from migrator.remote.destination import ConnectOptions
from migrator.remote.other_host import connected
from stages.steps import (
    abandon,
    ask_source,
    ask_state,
    finish_here,
    force,
    freeze_and_offer,
    give_back,
    restore_here,
    settling,
    stopped_here,
    two_copies,
)
from stages.steps.ask_source import Asking
from stages.steps.drive import Drive, locked_for
from stages.steps.options import MAX_DOWNTIME, MoveOptions, MoveRequest, NamedContainer

NAME = "resume"
DATA_FLOWS = {State.PREPARING, State.PREPARED}


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    container: NamedContainer | None = None  # None for every unfinished migration of this host
    destination: str | None = None  # None for the one that the migration began with
    source: str | None = None  # typed on the destination; None for its host name
    connect: ConnectOptions = dataclasses.field(default_factory=ConnectOptions)
    migration: str | None = None  # its id
    at_boot: bool = False
    no_memory: bool = False
    # Those of MoveOptions that were given.
    given: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def request(self, migration: Migration) -> MoveRequest:
        """What is to go where, of a migration from here."""
        container = NamedContainer(migration.name, self.container.given_lxcpath if self.container else None)
        return MoveRequest(container, self.destination or migration.peer, self.connect, no_memory=self.no_memory)

    def move(self, migration: Migration) -> MoveOptions:
        """Those that the migration began with, but for what was given now."""
        return dataclasses.replace(MoveOptions.recorded(migration), **self.given)

    @property
    def asking(self) -> Asking:
        """How the source is asked, of a migration to here."""
        return Asking(self.connect, self.source, self.given.get("max_downtime", MAX_DOWNTIME),
                      among_others=self.container is None)


# --- one migration --------------------------------------------------------------------------------------------


def one(options: ResumeOptions, name: str, lxcpath: Path, *, at_boot: bool = False) -> Result:
    """Carry the newest migration of a container on, or bring the container to where it may run."""
    with Journal(DEFAULT_PATH) as journal:
        with locked_for(journal, name, lxcpath):
            migration = journal.latest(name, lxcpath)
            if migration is None:
                raise NoMigration(name=name, stage=NAME, next=f"migrator migrate {name} -d HOST")
            if options.migration not in (None, migration.id):
                raise OutOfOrder(stage=NAME, missing=f"the newest migration of {name} here is {migration.id}",
                                 next=next_commands.command("status", migration))
            if migration.role is Role.SOURCE:
                return _on_source(options, journal, migration, at_boot=at_boot)
            done = _on_destination(options.asking, migration)
            stopped = stopped_here.is_stopped(migration)
        if _is_all(migration, at_boot=at_boot):
            return done
        done = ask_source.act(options.asking, migration, done)  # which needs the lock on this host
        migration.refresh()
        if stopped and migration.state is State.FINISHED and not migration.arrived.given_way:
            return Result(done.data, f"{done.text} {after_crash.where(migration)}")
        return done


def _result(migration: Migration, text: str, *, already: bool = False) -> Result:
    return Result({"migration": migration.id, "name": migration.name, "stage": NAME, "already": already,
                   "state": migration.state}, text)


def _ended(migration: Migration) -> Result:
    return _result(migration, f"The migration of {migration.name} has ended ({migration.state}): there is nothing to "
                              f"continue. {after_crash.in_use_note(migration)}".rstrip(), already=True)


# --- on the source --------------------------------------------------------------------------------------------


def _on_source(options: ResumeOptions, journal: Journal, migration: Migration, *, at_boot: bool) -> Result:
    request = options.request(migration)
    older_journal.bring_up(migration)

    def tell() -> str:
        return give_back.tell_over(request.connect, request.destination, migration)

    if migration.ended:
        elsewhere = request.destination != migration.peer
        return force.tell_late(migration, tell, elsewhere=elsewhere) or _ended(migration)
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
    # Once it was handed over nothing of it is needed here any more: what is left there may have been removed.
    container = lxc.Container(migration.name, migration.lxcpath, defined=migration.owner is Owner.SOURCE)
    return Drive(NAME, request, options.move(migration), journal, container, migration).run()


def _waits(migration: Migration, kept: str = "") -> Result:
    """At boot: until somebody says that it goes on. One that was removed must not have all be tried again for ever."""
    resume = next_commands.command(NAME, migration)
    try:
        state = lxc.told_state(lxc.Container(migration.name, migration.lxcpath))
    except ContainerNotFound:
        return _result(migration, f"{after_crash.where(migration)}{kept} Once it is there again, continue with: "
                                  f"{resume} -- or give it up: {next_commands.command('rollback', migration)}")
    return _result(migration, f"{migration.name} is {state} on this host, which has the token.{kept} Continue with: "
                              f"{resume}")


def _can_go_on(request: MoveRequest, migration: Migration) -> bool:
    """Ask the destination, the only one who knows; raises SourceStateUnknown where it does not answer."""
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
            rollback=next_commands.command(NAME, migration), path=next_commands.path(migration),
        ) from error
    stage = resume_rules.on_source(migration.state, there_state, images=answer.images)
    return stage != "rollback" or there_state is not State.OWNED


# --- on the destination ---------------------------------------------------------------------------------------


def _on_destination(asking: Asking, migration: Migration) -> Result:
    """What this host can do by itself, at boot too; raises SourceNeeded where that hangs on the source's word."""
    if migration.state is State.RESTORING:
        settling.settle(migration)
    if migration.state is State.RESTORED and (given_way := _complete_restored(asking, migration)):
        return given_way
    if migration.ended:
        return _ended(migration)
    images = after_crash.can_be_restored(migration)
    if migration.state in resume_rules.MAY_RESTORE and images:
        end = ask_source.leave_for(asking, migration, asking.max_downtime)
        return restore_here.carry_out(migration, asking.max_downtime, end) if end else ask_source.give_up(migration)
    if resume_rules.on_destination(migration.state, None, images=images) == "rollback":
        log.warning(f"{migration.name} cannot be restored here (what had arrived is gone): this host gives it up")
        return abandon.give_up_here(migration)
    if stopped_here.is_stopped(migration):
        return _result(migration, f"{migration.name} has run here, and is now stopped.")
    return _result(migration, f"{migration.name} is {migration.state} here. {after_crash.note(migration)}".rstrip())


def _complete_restored(asking: Asking, migration: Migration) -> Result | None:
    """It has run here. Where the source, which had given this host up for lost, runs it again, this copy gives way.

    A crash between the record and the end of the fence is made good: nobody could start it since, if it was a reboot.
    One that stands fenced is not let go on without the source's word; and where it has no fence and is stopped, as
    after a reboot, nobody is told to start it before the source has answered. Nor does one that was to give way, and
    runs, lose its fence without: the source may have been about to take it back, and not have done so. Raises
    TwoCopies, SourceNeeded, DiskAway, and where the source has not been told to go on without it, GoneThere or
    StoppedThere.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if lxc_disk.has_ended(layout, migration.begun.disk) and (
            ask_source.state_of_source(asking, migration) is State.FINISHED):
        return _end_too(migration)
    left = settling.has_left(migration)
    defined = not left and not lxc_disk.is_removed(layout)  # its root file system may be left there alone
    config = _text_of(layout.container / "config") if defined else ""
    fenced = container_config.fence_of(config) == migration.id
    end, found = -1.0, None
    if stands := not left and settling.stands_stopped(migration):
        end = ask_source.leave_for(asking, migration, asking.max_downtime)
        taken_back = not end
    else:
        found = ask_source.state_of_source(asking, migration, stopped_here.is_stopped(migration))
        taken_back = found in resume_rules.TAKEN_BACK
    if taken_back:
        if defined and lxc.Container(migration.name, migration.lxcpath).state != "STOPPED":
            raise two_copies.of(migration)  # by LXC's word: beside what it has lost it would start another
        message = (f"{migration.name} runs on {migration.peer} again. {container_config.SUPERSEDED}"
                   f" {next_commands.command('cleanup', migration)}")
        if defined and layout.is_own_rootfs():  # else it has been destroyed here, or none can be started
            if standing.fence_anew(migration, config, message):  # and gives way once nobody can start it
                autostart.refuse(migration, "resume", next_commands.command("resume", migration))
        elif defined:  # what has a fence may be removed, and that is not ours to say of this
            log.warning(f"What is in the place of {migration.name} may be a copy of it that someone has made here: it "
                        f"is not fenced. Do not start it: {migration.name} runs on {migration.peer}")
        two_copies.refuse(migration)  # last: a copy by another name keeps nothing from being fenced
        finish_here.give_way(migration)
        ask_source.state_of_source(asking, migration)  # which tells it
        return _result(migration, f"{message}.")
    if settling.is_gone(migration):
        raise settling.gone(migration)
    if stands:
        settling.refuse_stopped(migration)
        settling.go_on(migration, end)
    elif fenced and lxc.Container(migration.name, migration.lxcpath).state != "STOPPED":
        # By LXC's word: who looks into its root file system (chroot) would pass for it.
        if container_config.is_superseded(layout.container) and not ask_source.has_word(asking, migration, found):
            raise two_copies.of(migration)  # the source has said so before
        container_config.unfence(layout.container, migration.id)
    return _end_too(migration) if found is State.FINISHED else None


def _end_too(migration: Migration) -> Result:
    """The source has finished, which this host has confirmed: its journal is older than that."""
    finish_here.end_here(migration)
    return _result(migration, f"{migration.peer} has finished. {after_crash.where(migration)}")


def _text_of(config: Path) -> str:
    try:
        return container_config.text_of(config)
    except OSError as error:  # it may be a link to a disk that is not mounted yet
        raise MigratorError(reason=f"{config} cannot be read: {error.strerror}") from error


def _is_all(migration: Migration, *, at_boot: bool) -> bool:
    """Whether nothing is left that the source must do, or that it will do by itself."""
    if migration.state is State.ABANDONED:
        return not migration.ending.given_up_here or migration.ending.source_knows
    if at_boot:  # data that are under way can wait
        return migration.state not in (State.RESTORED, State.ABANDONING)
    return migration.ended


# --- all of them ----------------------------------------------------------------------------------------------


def every(options: ResumeOptions) -> Result:
    """Each unfinished migration of this host, one after the other; one that fails stops none of the others.

    Those from here come first, as their containers may stand still here, and of those to here root's own: who is not
    root may have begun many, and each is asked about.
    """
    with Journal(DEFAULT_PATH) as journal:
        newest: dict[tuple[str, str], Migration] = {}
        for each in journal.all():
            key = (each.name, os.path.realpath(each.lxcpath))
            newest.pop(key, None)  # so that they come in the order in which they began
            newest[key] = each
        found = [each for each in newest.values()
                 if not each.ended or (each.role is Role.DESTINATION and not _is_all(each, at_boot=options.at_boot))]
    found.sort(key=lambda each: (each.role is not Role.SOURCE, each.caller != ROOT_CALLER))
    outcomes: list[dict[str, Any]] = []
    lines = []
    for migration in found:
        outcome: dict[str, Any] = {"migration": migration.id, "name": migration.name, "lxcpath": str(migration.lxcpath)}
        try:
            done = one(options, migration.name, migration.lxcpath, at_boot=options.at_boot)
            outcome |= {"status": done.status, "result": done.data}
            lines.append(done.text)
        except Interrupted:
            raise
        except Exception as error:
            ours = as_ours(error, f"{NAME} {migration.name}")
            outcome |= {"status": ours.exit_status, "error": ours.to_json()}
            log.error(str(ours))
            if ours.hint:
                log.cure(ours.hint)
            lines.append(f"{migration.name}: not done (exit status {ours.exit_status}).")
        outcomes.append(outcome)
        container_lock.check_interrupted()  # a signal may have come while that one was given back
    with Journal(DEFAULT_PATH) as journal:  # last: it reads configurations, which can lie on a file server that is gone
        for told in filter(None, map(after_crash.in_use_note, journal.all())):
            log.warning(told)
    return Result({"stage": NAME, "migrations": outcomes}, "\n".join(lines) or "There is no unfinished migration.",
                  status=worst([outcome["status"] for outcome in outcomes]))


def worst(statuses: list[int]) -> int:
    """The exit status that weighs most: what was frozen first, then any failure; 0 when all is well."""
    return max(statuses, key=lambda status: (status in (3, 4, 5), status), default=0)


HANDLERS = ask_source.HANDLERS
