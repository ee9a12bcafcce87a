# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed or failed restore left behind: examined, recorded, and removed if the container never ran.

Whether the container may have run is on disk before it does (`migrator.criu.ran_mark`). What may have run is not
removed: its users may have got answers, and what they were told is only in its root file system.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from migrator.base import boot_clock, log
from migrator.config import container_config, fences
from migrator.copies import after_crash, come_up, no_memory, origins, second_start, standing
from migrator.criu import criu_dump, ran_mark, restore
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, GoneThere
from migrator.errors.memory import CopyNotEnded
from migrator.errors.ownership import WordOver
from migrator.errors.this_host import JournalBroken
from migrator.host import empty_cgroups, lxc
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from stages.steps import consented, left_running, renamed
from stages.steps.put_away import give_back_rootfs, put_aside

SETTLE_LIMIT = 10.0  # seconds that a CRIU left behind by a killed restore-dump may take to end


def settle(migration: Migration) -> None:
    """Settle a restore-dump that was killed or could not record its end.

    Either the container is alive here, whatever LXC says, and nothing of it is ended; or it has run here, and a reboot
    or its own end has stopped it: then it continues here, from its disk, but stays fenced until `go_on`, because the
    source may have been forced to take it back meanwhile. Or it never ran, and what the attempt left is removed. Raises
    JournalBroken or DiskAway, with nothing removed.
    """
    layout = Layout.of(migration)
    with lxc_disk.held(layout):  # the mark is on that disk
        mark = ran_mark.mark(layout.spool)
        container = None if lxc_disk.is_removed(layout) else lxc.Container(migration.name, migration.lxcpath)
        up = (_is_ours(layout) and _has_come_up(migration, container, layout) if container else
              layout.is_own_rootfs() and come_up.lives(migration, layout, SETTLE_LIMIT))
        ran = not up and ran_mark.was(mark) and origins.has_its_own(migration)
        stopped = {"had_stopped": ran_mark.boot(mark)} if ran else {}
        if ran and container:
            end(migration, container, layout)
        elif ran:  # only its configuration was removed
            _end_removed(migration, layout)
        elif not up:
            log.warning(f"An earlier restore of {migration.name} was killed; removing what it left" if container else
                        f"What an earlier restore of {migration.name} had made here was removed")
            clear(migration)
    if not up and not ran:
        migration.move(Event.RESTORE_FAILED)
        return
    record(migration, time.time(), **stopped)
    if up and container:
        log.warning(f"An earlier restore of {migration.name} was killed after it had succeeded")
        come_up.complete(migration, container, layout)


def is_gone(migration: Migration) -> bool:
    """Whether it has run here and was removed since: nothing in its place can run, and nothing of it does.

    That is so by LXC's word and under whatever name it may have now. Raises DiskAway.
    """
    layout = Layout.of(migration)
    if migration.state is not State.RESTORED or not has_left(migration):
        return False
    with lxc_disk.held(layout):  # its snapshots show what lives on
        return not lives_on(layout)


def has_left(migration: Migration) -> bool:
    """Whether what ran here is no longer in its place: nothing is, or another container.

    With a snapshot of its root file system, or its MAC addresses, it is the same one, whoever put it there. Raises
    DiskAway.
    """
    layout = Layout.of(migration)
    if not is_replaced(layout):
        return False
    with lxc_disk.held(layout):
        return lxc_disk.is_removed(layout) or not (origins.has_its_disk(migration) or renamed.is_back(migration))


def is_replaced(layout: Layout) -> bool:
    """Whether what is in its place was not made by this migration, and so is not ours to change or remove.

    The root file system tells, because what runs has no fence any more. Without the snapshots nothing does: then it is
    not called another one. Raises DiskAway.
    """
    if _is_ours(layout):
        return False
    with lxc_disk.held(layout):  # its disk may have been mounted only now
        return lxc_disk.is_removed(layout) or (not _is_ours(layout) and bool(layout.own_snapshots()))


def lives_on(layout: Layout) -> bool:
    """Whether a process of any container, of any name and in any cgroup, lives in a subvolume of this migration."""
    return bool(left_running.all_in_own(layout, lxc.container_processes("")))


def is_at_work(migration: Migration) -> bool:
    """Whether what is in its place runs, by LXC's word or as a start that LXC has lost track of.

    Nothing that runs elsewhere counts: no copy of it, and no container with its MAC addresses. Raises DiskAway.
    """
    layout = Layout.of(migration)
    if lxc_disk.is_removed(layout):
        return left_running.lives_elsewhere(layout)
    if has_left(migration):
        return False
    container = lxc.Container(layout.name, layout.lxcpath)
    return container.state != "STOPPED" or lives(layout, container.rootfs)


def gone(migration: Migration) -> GoneThere:
    """What the other host, which has the last copy, is told of a container that `is_gone`."""
    return GoneThere(name=migration.name, destination=next_commands.this_host(), source=migration.peer,
                     next=after_crash.by_force(migration))


def _is_ours(layout: Layout) -> bool:
    """Whether what is in its place was made by this restore.

    Told by the fence; and in case someone has meanwhile removed that, by hand or with a configuration management tool,
    by the root file system, which no one else's container has.
    """
    return origins.whose(layout).may_go or layout.is_own_rootfs()


def stands_fenced(migration: Migration) -> bool:
    """Whether it has run here and is now stopped and fenced: the source may have been forced to run it again.

    LXC also says STOPPED of what lives on without its monitor.
    """
    layout = Layout.of(migration)
    return seems_fenced(migration) and not lives(layout, layout.rootfs)


def lives(layout: Layout, rootfs: Path) -> bool:
    """Whether a start of what is in its place is alive, whatever LXC says. A mere visitor (chroot) does not count."""
    return second_start.on_disk(layout.name, layout.lxcpath, rootfs) is not None


def seems_fenced(migration: Migration) -> bool:
    """As `stands_fenced`, by LXC's word alone."""
    layout = Layout.of(migration)
    if migration.state is not State.RESTORED or not origins.whose(layout).may_go:
        return False
    return lxc.told_state(lxc.Container(migration.name, migration.lxcpath)) == "STOPPED"


def stands_stopped(migration: Migration) -> bool:
    """Whether it `stands_fenced`, or is on record as `has_stopped` and has lost its fence one way or another."""
    if stands_fenced(migration):
        return True
    on_record = migration.state is State.RESTORED and migration.arrived.had_stopped
    if not on_record or not after_crash.has_stopped(migration) or has_left(migration):
        return False
    with contextlib.suppress(ContainerNotFound):  # nor could it run then
        return not is_at_work(migration)
    return True


def refuse_stopped(migration: Migration) -> None:
    """Raise StoppedThere if it `stands_stopped` and its memory may be worth more than what has run here."""
    if migration.state is State.RESTORED:
        with lxc_disk.held(Layout.of(migration)):  # the mark is on that disk
            found = after_crash.has_stopped(migration) and stands_stopped(migration)
        if found:
            raise after_crash.stopped(migration)


def go_on(migration: Migration, end: float) -> None:
    """Remove the fence, if any, of a container that is stopped here, and start it from its disk.

    Call `refuse_stopped` first, unless an operator has chosen this. Not after `end`, by `boot_clock.now`: raises
    WordOver then, and StartFailed. It is confined first if the consent to its sender has been withdrawn.
    """
    layout = Layout.of(migration)
    if boot_clock.now() > end:
        raise WordOver(name=migration.name, next=next_commands.command("resume", migration))
    log.warning(f"{migration.name} had run here, and has since stopped: starting it from its disk")
    container = lxc.Container(migration.name, migration.lxcpath)
    with migration.step("start") as done:
        if origins.whose(layout).may_go and consented.confine(migration):
            done.reason = restore.CONFINED
        with no_memory.unfenced(container, migration.id, end) as config:
            log_file = no_memory.log_of(container, anew=True)
            left = end - boot_clock.now()  # again, and last: records, copies and logs take as long as the disk takes
            if left < 0:
                raise WordOver(name=migration.name, next=next_commands.command("resume", migration))
            no_memory.start(container, migration.id, config=config, limit=min(left, no_memory.START_LIMIT),
                            log_file=log_file)
    with contextlib.suppress(JournalBroken):  # an operator who has to choose again will choose the same
        migration.note("started", had_stopped="")
    container_config.unfence(layout.container, migration.id)


def record(migration: Migration, restored_at: float, **more: str) -> None:
    """Record that it runs here, as of `restored_at` (Unix time, seconds). On JournalBroken it still runs on.

    If this raises JournalBroken, it still runs on.

    Or that it has run: then `had_stopped` is the boot in which it was let run, see `after_crash.has_stopped`.
    """
    made = ""
    with contextlib.suppress(MigratorError, OSError):
        made = origins.rootfs_uuid(migration)  # its snapshots may be removed, or someone may put a copy in its place
    known = {"hwaddrs": renamed.on_record(migration)} | ({"rootfs_uuid": made} if made else {})
    try:
        migration.move(Event.RESTORED, restored_at=restored_at, **known, **more)
    except JournalBroken:
        log.warning(f"{migration.name} was allowed to run here, and that stands, but it could not be recorded. The "
                    f"next command records it: {next_commands.command('resume', migration)}")
        raise


def _has_come_up(migration: Migration, container: lxc.Container, layout: Layout) -> bool:
    """Whether a killed restore had brought the container up, and nobody has put another one in its place."""
    if migration.memory and criu_dump.left_after(SETTLE_LIMIT, layout.dumped_into()):
        return False  # it hangs; LXC answers no question about the container before it has ended
    asked = migration.memory or no_memory.runs(container, migration.id)  # this waits
    if asked and not migration.memory and no_memory.has_monitor(migration.id):
        return True  # wherever its root is
    cgroup = come_up.cgroup(container) if asked else None
    if cgroup and lxc.processes(cgroup) and (_is_of(layout, cgroup) or (
            lxc.runs_in(layout.name, layout.rootfs) and origins.has_its_disk(migration))):
        return True
    return come_up.lives(migration, layout, SETTLE_LIMIT)


def _is_of(layout: Layout, cgroup: Path) -> bool:
    """Whether what LXC has there lives in what this migration made, rather than being the copy of an earlier stay, say.

    Someone may have started such a copy past its fence. Without the snapshots only the mark tells.
    """
    if not layout.own_snapshots():
        return ran_mark.was(ran_mark.mark(layout.spool))
    return bool(left_running.all_in_own(layout, lxc.processes(cgroup)))


def clear(migration: Migration) -> None:
    """End what a failed or killed restore left running, and remove its root file system again.

    One that may have run is put aside, and only `migrator cleanup NAME` removes it. Raises ContainerExists if another
    container has taken its place while something of it still runs elsewhere, because nothing may be recorded then;
    CopyNotEnded if something of it does not end, for the same reason; and DiskAway if its disk is gone.
    """
    layout = Layout.of(migration)
    with lxc_disk.held(layout):
        _clear(migration, layout)


def _clear(migration: Migration, layout: Layout) -> None:
    if lxc_disk.is_removed(layout):
        _end_removed(migration, layout)
    elif not end(migration, lxc.Container(migration.name, migration.lxcpath), layout):
        if lives_on(layout):
            origins.require_ours(layout)
        return
    put_aside(layout)
    try:
        give_back_rootfs(layout)
        ran_mark.drop(ran_mark.mark(layout.spool))  # last: while the mark is there, the root file system is kept
    # Nothing runs, and that must be recorded; the next restore removes the rest.
    except (MigratorError, OSError) as error:
        log.warning(f"Something of the restore of {migration.name} is left for now: {error}")


def end(migration: Migration, container: lxc.Container, layout: Layout) -> bool:
    """End what is left of a restore; False if someone has put another container there, which is left alone.

    Only processes of this attempt are ended: the monitor and CRIU, recognised by this migration's images directory
    among their arguments, and whatever lives in its own root file system, wherever that is by now, or in LXC's cgroup
    with that as its root.

    Raises CopyNotEnded if that does not end, once it is fenced, or if it is unclear to which container a live process
    belongs.
    """
    if not migration.memory:
        no_memory.end(container, migration.id)
    left_running.end_criu(layout)
    if not _is_ours(layout):
        return False
    another = False
    with contextlib.suppress(MigratorError, OSError):
        if cgroup := come_up.cgroup(container):  # LXC does not answer during a restore
            another = bool(lxc.processes(cgroup)) and not _is_of(layout, cgroup)
            if not another:
                (cgroup / "cgroup.kill").write_text("1")
    left = left_running.kill(layout, len(migration.data.rounds) + 1)
    if not migration.memory:
        left += left_running.live_below(layout)
    left += _live_untold(layout)
    if another:
        log.warning(f"What LXC knows as {migration.name} was not made by migration {migration.id}: it is left alone")
    else:
        left_running.wait_stopped(container)
    _clear_up(layout)
    text = container_config.text_of(layout.container / "config")
    try:
        standing.fence_anew(migration, text,
                            f"{migration.name} is being moved here; see: {next_commands.command('status', migration)}")
    except OSError as error:  # an unwritable disk must not keep it from being ended if there is a fence already
        if container_config.fence_of(text) != migration.id or not fences.refuses(layout.container, text):
            raise
        log.warning(f"The fence of {migration.name} could not be rewritten, and stays: {error}")
    _require_none(migration, left)
    return True


def _end_removed(migration: Migration, layout: Layout) -> None:
    """As `end`, if no container is defined in its place: LXC cannot be asked, and there is nothing to fence."""
    left_running.end_criu(layout)
    _require_none(migration, left_running.kill(layout, len(migration.data.rounds) + 1))
    if not migration.memory:
        no_memory.end(layout, migration.id)  # LXC's monitor has ended together with what it had started
        _require_none(migration, left_running.live_below(layout))
    _require_none(migration, _live_untold(layout))
    _clear_up(layout)


def _live_untold(layout: Layout) -> list[int]:
    """Processes that may be of this container, if it may have been let run and the telltale snapshot was removed.

    Nothing is concluded while any of these are alive.
    """
    told = layout.is_own_rootfs() or not ran_mark.was(ran_mark.mark(layout.spool))
    return [] if told else left_running.live_in(layout.name, layout.rootfs)


def _require_none(migration: Migration, left: list[int]) -> None:
    if left:
        raise CopyNotEnded(name=migration.name, place=f"a root file system of migration {migration.id}",
                           pids=",".join(map(str, left)), next=next_commands.command("resume", migration))


def _clear_up(layout: Layout) -> None:
    empty_cgroups.drop(layout.name, restore.cgroup_folder(layout))
    restore.clear(layout)
