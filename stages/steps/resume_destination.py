# SPDX-License-Identifier: GPL-2.0-or-later
"""`resume` on the destination: what this host can do by itself, and what depends on the word of the source."""

from __future__ import annotations

from pathlib import Path

from migrator.base import log
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import after_crash, autostart, resume_rules, standing
from migrator.errors import MigratorError
from migrator.host import lxc
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from stages.steps import (
    abandon,
    ask_source,
    finish_here,
    restore_here,
    resumed,
    settling,
    stopped_here,
    two_copies,
)
from stages.steps.ask_source import Asking


def go_on(asking: Asking, migration: Migration) -> Result:
    """What this host can do by itself, also at boot; raises SourceNeeded if that depends on the source's word."""
    if migration.state is State.RESTORING:
        settling.settle(migration)
    if migration.state is State.RESTORED and (given_way := _complete_restored(asking, migration)):
        return given_way
    if migration.ended:
        return resumed.ended(migration)
    images = after_crash.can_be_restored(migration)
    if migration.state in resume_rules.MAY_RESTORE and images:
        end = ask_source.leave_for(asking, migration, asking.max_downtime)
        return restore_here.carry_out(migration, asking.max_downtime, end) if end else ask_source.give_up(migration)
    if resume_rules.on_destination(migration.state, None, images=images) == "rollback":
        log.warning(f"{migration.name} cannot be restored here (what had arrived is gone): this host gives it up")
        return abandon.give_up_here(migration)
    if stopped_here.is_stopped(migration):
        return resumed.result(migration, f"{migration.name} has run here, and is now stopped.")
    return resumed.result(
        migration, f"{migration.name} is {migration.state} here. {after_crash.note(migration)}".rstrip())


def _complete_restored(asking: Asking, migration: Migration) -> Result | None:
    """It has run here. If the source, which had given this host up for lost, runs it again, this copy gives way.

    After a crash between the record and the removal of the fence, the fence is removed now: if the crash was a reboot,
    nobody has been able to start the container since. One that is stopped and fenced is not started without the
    source's word; and if it has no fence and is stopped, as after a reboot, nobody is told to start it before the
    source has answered. Nor does one that was to give way, and runs, lose its fence without that word: the source may
    have been about to take it back and not have done so. Raises TwoCopies, SourceNeeded, DiskAway, and, if the source
    has not been told to go on without it, GoneThere or StoppedThere.
    """
    layout = Layout.of(migration)
    if lxc_disk.has_ended(layout, migration.begun.disk) and (
            ask_source.state_of_source(asking, migration) is State.FINISHED):
        return _end_too(migration)
    left = settling.has_left(migration)
    defined = not left and not lxc_disk.is_removed(layout)  # perhaps only its root file system is left there
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
            # By LXC's word, which would start another beside the one it has lost track of.
            raise two_copies.of(migration)
        message = (f"{migration.name} runs on {migration.peer} again. {container_config.SUPERSEDED}"
                   f" {next_commands.command('cleanup', migration)}")
        if defined and layout.is_own_rootfs():  # otherwise it was destroyed here, or cannot be started
            if standing.fence_anew(migration, config, message):  # and it gives way once nobody can start it
                autostart.refuse(migration, "resume", next_commands.command("resume", migration))
        elif defined:  # what has a fence may be removed, which is not for us to say of this one
            log.warning(f"What is in the place of {migration.name} may be a copy of it that someone has made here: it "
                        f"is not fenced. Do not start it: {migration.name} runs on {migration.peer}")
        two_copies.refuse(migration)  # last: a copy by another name must not keep this one from being fenced
        finish_here.give_way(migration)
        ask_source.state_of_source(asking, migration)  # this tells the source
        return resumed.result(migration, f"{message}.")
    if settling.is_gone(migration):
        raise settling.gone(migration)
    if stands:
        settling.refuse_stopped(migration)
        settling.go_on(migration, end)
    elif fenced and lxc.Container(migration.name, migration.lxcpath).state != "STOPPED":
        # By LXC's word: someone who looks into its root file system (chroot) would be taken for it.
        if container_config.is_superseded(layout.container) and not ask_source.has_word(asking, migration, found):
            raise two_copies.of(migration)  # the source has said so before
        container_config.unfence(layout.container, migration.id)
    return _end_too(migration) if found is State.FINISHED else None


def _end_too(migration: Migration) -> Result:
    """The source has finished, which this host had confirmed: this host's journal is older than that."""
    finish_here.end_here(migration)
    return resumed.result(migration, f"{migration.peer} has finished. {after_crash.where(migration)}")


def _text_of(config: Path) -> str:
    try:
        return container_config.text_of(config)
    except OSError as error:  # it may be a symlink to a disk that is not mounted yet
        raise MigratorError(reason=f"{config} cannot be read: {error.strerror}") from error


