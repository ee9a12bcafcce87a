# SPDX-License-Identifier: GPL-2.0-or-later
"""What a crash or a reboot has left of a migration on this host: the frozen memory, the images, the container.

A reboot kills whatever was frozen and empties /run, where the images usually are. The journal knows nothing of either,
so the machine itself has to be inspected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from migrator.base import boot_clock, log
from migrator.config import container_config
from migrator.copies import bases, no_memory, older_journal, origins, remains, second_start, standing
from migrator.criu import ran_mark
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, DiskAway, StoppedThere
from migrator.host import lxc
from migrator.record import lxc_disk, next_commands
from migrator.record.decisions import next_stage
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import FROZEN, Role, State


def images_are_here(migration: Migration) -> bool:
    """On the destination: whether all that a restore needs of the memory is still there; true if it needs none."""
    if not migration.memory:
        return True
    folder = Layout.of(migration).images()
    wanted = migration.handover.image_files
    return folder is not None and bool(wanted) and all((folder / name).is_file() for name in wanted)


def can_be_restored(migration: Migration) -> bool:
    """On the destination: whether the images are here and no other container has taken this one's place.

    Also true when the container's disk is missing, because then nobody can tell: whoever tries to restore gets told,
    and the migration is not given up for a disk that may come back.
    """
    layout = Layout.of(migration)
    try:
        with lxc_disk.held(layout):
            return images_are_here(migration) and origins.whose(layout).may_go
    except DiskAway:
        return True


def has_stopped(migration: Migration) -> bool:
    """On the destination: whether a container that is now stopped here was let run in this very boot.

    It may have stopped by itself, or together with whoever ordered the restore. It may also never have got as far as
    running, and in that case the source still has its memory. A container moved without memory has none to lose, and
    one that ran before a reboot simply carries on from its disk. The stop is on record together with the boot in which
    it happened; for migrations of older versions, and for a container that stopped right after the record was written,
    the mark left by the restore tells.
    """
    boot = migration.arrived.had_stopped
    if boot is None:
        mark = ran_mark.mark(Layout.of(migration).spool)
        boot = ran_mark.boot(mark) if ran_mark.was(mark) else ""
    return migration.memory and boot == boot_clock.BOOT_ID.read_text().strip()


def stopped(migration: Migration) -> StoppedThere:
    """The error to report for a container that `has_stopped`."""
    return StoppedThere(
        name=migration.name, destination=next_commands.this_host(), source=migration.peer, there=migration.name,
        rootfs=Layout.of(migration).rootfs, lxcpath=migration.lxcpath,
        start=next_commands.command("restore-dump", migration), back=by_force(migration))


def by_force(migration: Migration) -> str:
    """On the destination: the command with which the source takes the container back once nothing of it is left here.
    """
    return next_commands.command("rollback@source", migration, "--force", migration.id)


def held(migration: Migration) -> bool:
    """On the source: whether it is this migration that keeps the container from running, and so must let it run again.
    """
    if migration.state is State.ROLLING_BACK:
        return bool(migration.still.held)
    return migration.state in FROZEN


def start_from_disk(migration: Migration) -> None:
    """Start the container from its disk, as after any reboot, because its frozen memory is gone.

    Does nothing if someone has already started it or if it no longer exists. That includes a start that LXC has lost
    track of: two copies must not run on one disk.

    The fence is removed first. If the disk is too full for that, the container is started from a configuration without
    it. Raises StartFailed, also when processes of the frozen container are still alive.
    """
    remains.require_none(migration)
    gone = no_memory.is_gone(migration)
    stands = _unfence(migration)
    if gone:
        return
    container = lxc.Container(migration.name, migration.lxcpath)
    if not held(migration) or container.state != "STOPPED":
        log.warning(f"{migration.name} is no longer the process that was frozen; there is nothing to thaw")
        return
    if no_memory.is_lost(migration, container):
        return
    log.warning(f"The memory of {migration.name} is gone, as after a reboot: starting it from its disk")
    with migration.step("start", must_be_recorded=False):
        if stands:
            with no_memory.unfenced(container, migration.id) as config:
                no_memory.start(container, migration.id, config=config)
            _unfence(migration)
        else:
            no_memory.start(container, migration.id)


def _unfence(migration: Migration) -> bool:
    """Remove the fence; returns whether it is still there, for example because the disk is full."""
    try:
        container_config.unfence(migration.lxcpath / migration.name, migration.id)
    except OSError as error:
        log.warning(f"The fence of {migration.name} could not be removed: {error}")
        return True
    return False


def where(migration: Migration) -> str:
    """What has become of a container that was given back to its own host, in a sentence or two."""
    name, lxcpath = migration.name, migration.lxcpath
    try:
        state = lxc.told_state(lxc.Container(name, lxcpath))
    except ContainerNotFound:
        state = ""
    if state == "RUNNING":
        return f"{name} keeps running here."
    end = ""
    if remains.are_here(migration):
        end = f"echo 1 >{migration.still.cgroup}/cgroup.kill"
    elif state in ("", "STOPPED") and (lost := remains.on_disk(migration)) is not None:
        end = f"kill -9 {lost}{remains.doubt(migration, lost)}"
    if end:
        return (f"{name} keeps running here, but LXC no longer knows of it: its monitor has ended, or its "
                f"configuration is gone. Do not start a second one; to end it: {end}")
    if not state:
        return (f"LXC no longer knows of {name} in {lxcpath}: it has been removed or renamed. List the containers "
                f"with: lxc-ls -f -P {lxcpath}")
    return f"{name} is {state} here. Start it with: lxc-start -P {lxcpath} {name}"


def note(migration: Migration) -> str:
    """What this host knows beyond the state in its journal, in a sentence or two for `migrator status`; "" if nothing.
    """
    found = _on_source(migration) if migration.role is Role.SOURCE else _on_destination(migration)
    return " ".join(each for each in (found, bases.note(migration), aside_note(migration)) if each)


def in_use_note(migration: Migration) -> str:
    """On the source, after a final move: a warning that the copy left here runs, or can be started; "" if neither.

    The fence is deliberately not put back in this case: if the destination has burnt down, this is the only copy. But
    it may also be that someone who knew nothing of the move rewrote the configuration, including lxc.start.auto = 1.
    The warning is not given for a container that has come back (it has another root file system) or that is moving
    again, to here included, because then the fence of that move applies.
    """
    if migration.role is not Role.SOURCE or migration.state is not State.FINISHED:
        return ""
    if not all(each.ended for each in migration.others()):
        return ""
    newest = migration.journal.latest(migration.name, migration.lxcpath, Role.SOURCE)
    if not newest or newest.id != migration.id or not (
            _is(standing.is_in_use, migration) and origins.is_there(migration)):
        return ""
    does = "runs here" if _is(standing.started_anew, migration) else "can be started here"
    there = next_commands.other_host(migration)
    return (f"{migration.name} {does}, though it has moved to {next_commands.moved_to(migration)}: its fence was "
            f"removed, or does not prevent a start. Two copies must not run: unless {there} is lost for good, stop the "
            "one here, and make sure that nothing starts it again. If it is lost, forget the move: "
            f"{next_commands.command('cleanup', migration, '--forget')}")


def aside_note(migration: Migration) -> str:
    """On the destination: which root file systems are kept because they may have run here or were here before; or "".
    """
    layout = Layout.of(migration)
    if migration.role is Role.SOURCE:
        return ""
    told = []
    if kept := layout.set_aside():
        told.append(f"What {migration.name} had written here, before a restore failed or in an earlier stay, is kept "
                    f"in {', '.join(map(str, kept))}, as there may be no other copy of it, until: "
                    f"{next_commands.command('cleanup', migration)}")
    if migration.ended and (layout.old / "rootfs").exists():
        told.append(f"What was in the place of {migration.name} is kept in {layout.old}, and may be the only copy of"
                    f" what it has; this removes it, or says why it stays:"
                    f" {next_commands.command('cleanup', migration)}")
    return " ".join(told)


def tell_later(migration: Migration) -> str:
    """On the source: what to do about a destination that could not be told of a rollback."""
    there = next_commands.other_host(migration)
    return (f"Once {there} can be reached again, have it remove what it has received:"
            f" {next_commands.command('rollback', migration)}")


def _on_source(migration: Migration) -> str:
    there = next_commands.other_host(migration)
    if migration.state is State.ROLLED_BACK and migration.owes:
        if not migration.ending.forced:
            return f"{there} could not be told. {tell_later(migration)}"
        return (f"Rolled back by force: {there} has never said that it does not run it. Should that host come back, "
                f"run there, before anything else: {next_commands.typed('resume@destination', migration)}")
    if migration.state is State.FINISHED:
        return in_use_note(migration)
    if older := older_journal.note(migration):
        return older
    if migration.state not in FROZEN or migration.state is State.FINISHING:
        return ""
    stands = _past_fence(migration) or _stands(migration)
    if _is(standing.is_heard, migration):
        stands += (" Its network is no longer silenced, as after `nft flush ruleset`: its kernel answers for it. "
                   f"Silence it again with: {next_commands.again('create-dump', migration)}.")
    if migration.state is State.OFFERED:
        return f"{stands} The token was offered to {there}: only that host knows whether it has taken it."
    if migration.state is State.DUMPED:
        return f"{stands} {there} has the token: it runs there, or may be restored there at any time."
    if migration.memory and not remains.first_is_here(migration) and held(migration):
        can = "it runs here" if _is(standing.started_anew, migration) else "it can be started from its disk"
        return f"{stands} This host has the token: {can}."
    return ""


def _stands(migration: Migration) -> str:
    """In what condition the frozen or stopped container is here, and whether another start of it runs beside it."""
    if not migration.memory:
        return "It is stopped here, with all of its disk."
    if not remains.first_is_here(migration):
        return "The memory that was frozen here is gone, as after a reboot."
    if not _is(standing.started_anew, migration):
        return "It is frozen here, with all its memory."
    return ("It is frozen here, with all its memory, and was also started a second time, past its fence. End that one "
            f"with {standing.end_of(migration)}: two must not run on one disk{standing.doubt(migration)}.")


def _past_fence(migration: Migration) -> str:
    """How the container came to run here although its destination may run it; "" if it does not, as far as can be told.
    """
    if migration.role is not Role.SOURCE or migration.state not in (State.OFFERED, State.DUMPED):
        return ""
    if _is(remains.was_thawed, migration):
        return "It runs here: someone has thawed it."
    if not remains.first_is_here(migration) and _is(standing.started_anew, migration):
        return "It runs here: someone has started it past its fence."
    return ""


def _is(question: Callable[[Migration], bool], migration: Migration) -> bool:
    with contextlib.suppress(MigratorError, OSError):  # what is on record is reported all the same
        return question(migration)
    return False


def _on_destination(migration: Migration) -> str:
    if migration.state in (State.OWNED, State.RESTORING, State.RESTORED):
        here = Layout.of(migration)
        try:
            lxc_disk.require(here)
        except DiskAway as error:
            if migration.state is State.RESTORED and lxc_disk.has_ended(here, migration.begun.disk):
                return ("It seems to have ended here, and this journal is an older one: what was kept for it until "
                        f"then is gone. This asks {migration.peer}: {next_commands.command('resume', migration)}")
            return f"{error} {error.hint}"
    if migration.state is State.OWNED and not images_are_here(migration):
        return (f"This host has the token, but the memory images are gone, as after a reboot: it can only be given back"
                f" to {migration.peer}.")
    if migration.state is State.OWNED and not can_be_restored(migration):
        return (f"This host has the token, but what had arrived was removed, or another container has taken its place:"
                f" it can only be given back to {migration.peer}.")
    if migration.state is State.RESTORED:
        with contextlib.suppress(MigratorError):
            if lxc.Container(migration.name, migration.lxcpath).state == "STOPPED":
                layout = Layout.of(migration)
                if second_start.on_disk(migration.name, migration.lxcpath, layout.rootfs) is not None:
                    return ("It has run here, and processes of it are still alive, although LXC no longer knows of it: "
                            "its monitor has ended. Do not start a second one.")
                fenced = origins.whose(layout).may_go
                if has_stopped(migration) and (fenced or migration.arrived.had_stopped):
                    found = stopped(migration)
                    return f"{found} {found.hint}"
                if fenced:
                    return (f"It has run here, and was stopped before {migration.peer} had been told. This asks that "
                            f"host, and then continues: {next_commands.command('resume', migration)}")
                return (f"It has run here and is now stopped, as after a reboot, and {migration.peer} may have been"
                        f" forced to run it again. Before it is started, have that host asked:"
                        f" {next_commands.command('resume', migration)}")
    return ""


def next_command(migration: Migration) -> str:
    """As `next_commands.next_command`, but taking into account what is left on this host."""
    if migration.role is Role.DESTINATION and migration.state is State.OWNED and not can_be_restored(migration):
        return next_commands.command("resume", migration)
    if _past_fence(migration):
        return next_commands.command("rollback", migration)
    if reached := older_journal.reached(migration):
        return next_commands.command(next_stage(Role.SOURCE, reached), migration)
    return next_commands.next_command(migration)
