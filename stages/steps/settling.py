# SPDX-License-Identifier: GPL-2.0-or-later
"""What a restore that was killed, or has failed, has left: looked at, recorded, and taken away where it never ran.

Whether the container may have run is on disk before it does (`migrator.criu.ran_mark`). What may have run is not taken
away: its users may have been answered, and what they have been told is in its root file system alone.
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

SETTLE_LIMIT = 10.0  # seconds that CRIU, left behind by a restore-dump that was killed, may take to come to its end


def settle(migration: Migration) -> None:
    """An earlier restore-dump was killed, or could not record its end: that is made good.

    Either the container lives here, whatever LXC says of it, and nothing of it is ended; or it has run here, and a
    reboot or its own end has stopped it: then it is here that it goes on, from its disk, but fenced until `go_on`: the
    source may have been forced to take it back meanwhile.
    Or it never ran, and what the attempt left is removed. Raises JournalBroken, or DiskAway, with nothing taken away.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    with lxc_disk.held(layout):  # the mark is on it
        mark = ran_mark.mark(layout.spool)
        container = None if lxc_disk.is_removed(layout) else lxc.Container(migration.name, migration.lxcpath)
        up = (_is_ours(layout) and _has_come_up(migration, container, layout) if container else
              layout.is_own_rootfs() and come_up.lives(migration, layout, SETTLE_LIMIT))
        ran = not up and ran_mark.was(mark) and origins.has_its_own(migration)
        had_stopped = ran_mark.boot(mark) if ran else ""
        if ran and container:
            end(migration, container, layout)
        elif ran:  # only its configuration was removed
            _end_removed(migration, layout)
        elif not up:
            log.warning(f"An earlier restore of {migration.name} was killed; removing what it left" if container else
                        f"What an earlier restore of {migration.name} had made here was removed")
            clear(migration)
    if ran:
        record(migration, time.time(), had_stopped=had_stopped)
    elif up:
        record(migration, time.time())
        if container:
            log.warning(f"An earlier restore of {migration.name} was killed after it had succeeded")
            come_up.complete(migration, container, layout)
    else:
        migration.move(Event.RESTORE_FAILED)


def is_gone(migration: Migration) -> bool:
    """Whether it has run here, and was removed since: LXC has nothing in its place that could run, and nothing of it
    does, whatever it is called by now. Raises DiskAway.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if migration.state is not State.RESTORED or not has_left(migration):
        return False
    with lxc_disk.held(layout):  # its snapshots tell what lives on
        return not lives_on(layout)


def has_left(migration: Migration) -> bool:
    """Whether what has run here is not in its place any more: nothing is, or another container.

    With a snapshot of its root file system, or its addresses, it is the same, whoever has put that there. DiskAway.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if not is_replaced(layout):
        return False
    with lxc_disk.held(layout):
        return lxc_disk.is_removed(layout) or not (origins.has_its_disk(migration) or renamed.is_back(migration))


def is_replaced(layout: Layout) -> bool:
    """Whether what is in its place has not been made by this migration, and so is nothing of ours to change or remove.

    That is told by the root file system, as what runs has no fence any more. Without the snapshots nothing tells: then
    it is not said to be another one. Raises DiskAway.
    """
    if _is_ours(layout):
        return False
    with lxc_disk.held(layout):  # its disk may have been mounted only now
        return lxc_disk.is_removed(layout) or (not _is_ours(layout) and bool(layout.own_snapshots()))


def lives_on(layout: Layout) -> bool:
    """Whether a process of any container's, of any name and in any cgroup, lives in a subvolume of this migration's."""
    return bool(left_running.all_in_own(layout, lxc.container_processes("")))


def is_at_work(migration: Migration) -> bool:
    """Whether what is in its place runs, by LXC's word, or as a start of its that LXC has lost.

    Nothing that runs beside it makes up for that: no copy of it, none with its addresses. Raises DiskAway.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if lxc_disk.is_removed(layout):
        return left_running.lives_elsewhere(layout)
    if has_left(migration):
        return False
    container = lxc.Container(layout.name, layout.lxcpath)
    return container.state != "STOPPED" or lives(layout, container.rootfs)


def gone(migration: Migration) -> GoneThere:
    """What the other host, which has the last copy, is told of one that `is_gone`."""
    return GoneThere(name=migration.name, destination=next_commands.this_host(), source=migration.peer,
                     next=after_crash.by_force(migration))


def _is_ours(layout: Layout) -> bool:
    """Whether what is in its place is what this restore has made.

    By the fence; and should somebody have taken that away meanwhile, by hand or with what writes his configurations, by
    the root file system, which no container of anybody else's has.
    """
    return origins.whose(layout).may_go or layout.is_own_rootfs()


def stands_fenced(migration: Migration) -> bool:
    """Whether it has run here, and is stopped and fenced now: the source may have been forced to run it again.

    LXC says STOPPED also of what lives on without its monitor.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    return seems_fenced(migration) and not lives(layout, layout.rootfs)


def lives(layout: Layout, rootfs: Path) -> bool:
    """Whether a start of what is in its place does, whatever LXC says. Who only looks into it (chroot) is none."""
    return second_start.on_disk(layout.name, layout.lxcpath, rootfs) is not None


def seems_fenced(migration: Migration) -> bool:
    """The same by LXC's word alone."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if migration.state is not State.RESTORED or not origins.whose(layout).may_go:
        return False
    return lxc.told_state(lxc.Container(migration.name, migration.lxcpath)) == "STOPPED"


def stands_stopped(migration: Migration) -> bool:
    """Whether it `stands_fenced`, or is on record as `has_stopped` and has lost its fence, by whatever hand."""
    if stands_fenced(migration):
        return True
    on_record = migration.state is State.RESTORED and migration.arrived.had_stopped
    if not on_record or not after_crash.has_stopped(migration) or has_left(migration):
        return False
    with contextlib.suppress(ContainerNotFound):  # nor could it run then
        return not is_at_work(migration)
    return True


def refuse_stopped(migration: Migration) -> None:
    """Raises StoppedThere where it `stands_stopped`, and its memory may be worth more than what has run here."""
    if migration.state is State.RESTORED:
        with lxc_disk.held(Layout(migration.lxcpath, migration.name, migration.id)):  # the mark is on it
            found = after_crash.has_stopped(migration) and stands_stopped(migration)
        if found:
            raise after_crash.stopped(migration)


def go_on(migration: Migration, end: float) -> None:
    """Take the fence of one that is stopped here away, if it has one, and start it from its disk.

    Ask `refuse_stopped` before, unless somebody has chosen that. Not after `end`, by `boot_clock.now`: raises WordOver
    then, and StartFailed. It is confined first, where its sender's consent has gone.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if boot_clock.now() > end:
        raise WordOver(name=migration.name, next=next_commands.command("resume", migration))
    log.warning(f"{migration.name} had run here, and has since stopped: starting it from its disk")
    container = lxc.Container(migration.name, migration.lxcpath)
    with migration.step("start") as done:
        if origins.whose(layout).may_go and consented.confine(migration):
            done.reason = restore.CONFINED
        with no_memory.unfenced(container, migration.id, end) as config:
            log_file = no_memory.log_of(container, anew=True)
            left = end - boot_clock.now()  # once more, and last: records, copies and logs take as long as the disk does
            if left < 0:
                raise WordOver(name=migration.name, next=next_commands.command("resume", migration))
            no_memory.start(container, migration.id, config=config, limit=min(left, no_memory.START_LIMIT),
                            log_file=log_file)
    with contextlib.suppress(JournalBroken):  # who chooses once more chooses the same
        migration.note("started", had_stopped="")
    container_config.unfence(layout.container, migration.id)


def record(migration: Migration, restored_at: float, **more: str) -> None:
    """That it runs here, as of `restored_at` (seconds since 1970). Raises JournalBroken, and it runs on.

    Or that it has run: then `had_stopped` is the boot in which it was let run, see `after_crash.has_stopped`.
    """
    made = ""
    with contextlib.suppress(MigratorError, OSError):
        made = origins.rootfs_uuid(migration)  # its snapshots may be removed, or somebody puts a copy in its place
    known = {"hwaddrs": renamed.on_record(migration)} | ({"rootfs_uuid": made} if made else {})
    try:
        migration.move(Event.RESTORED, restored_at=restored_at, **known, **more)
    except JournalBroken:
        log.warning(f"{migration.name} was allowed to run here, and that stands, but it could not be recorded. The "
                    f"next command records it: {next_commands.command('resume', migration)}")
        raise


def _has_come_up(migration: Migration, container: lxc.Container, layout: Layout) -> bool:
    """Whether a restore that was killed had brought the container up, and not somebody another one in its place."""
    if migration.memory and criu_dump.left_after(SETTLE_LIMIT, layout.dumped_into()):
        return False  # it hangs; LXC answers no question about the container before it has ended
    asked = migration.memory or no_memory.runs(container, migration.id)  # which waits
    if asked and not migration.memory and no_memory.has_monitor(migration.id):
        return True  # wherever it has its root
    cgroup = come_up.cgroup(container) if asked else None
    if cgroup and lxc.processes(cgroup) and (_is_of(layout, cgroup) or (
            lxc.runs_in(layout.name, layout.rootfs) and origins.has_its_disk(migration))):
        return True
    return come_up.lives(migration, layout, SETTLE_LIMIT)


def _is_of(layout: Layout, cgroup: Path) -> bool:
    """Whether what LXC has there lives in what this migration has made, and is not, say, the copy of an earlier stay
    that somebody has started past its fence. Without the snapshots only the mark tells.
    """
    if not layout.own_snapshots():
        return ran_mark.was(ran_mark.mark(layout.spool))
    return bool(left_running.all_in_own(layout, lxc.processes(cgroup)))


def clear(migration: Migration) -> None:
    """End what a failed or killed restore has left running, and take its root file system away again.

    One that may have run is put aside, and only `migrator cleanup NAME` removes it. Raises ContainerExists where
    another container has taken its place, and something of it still runs elsewhere: nothing may be recorded then. Nor
    where something of it does not end: CopyNotEnded; or where its disk is gone: DiskAway.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
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
        ran_mark.drop(ran_mark.mark(layout.spool))  # last: as long as it is there, the root file system is kept
    except (MigratorError, OSError) as error:  # nothing runs, and that is to be recorded; the next restore removes it
        log.warning(f"Something of the restore of {migration.name} is left for now: {error}")


def end(migration: Migration, container: lxc.Container, layout: Layout) -> bool:
    """End what is left of a restore; False where somebody has put another container there, which is left alone.

    Only processes that belong to this attempt are ended: the monitor and CRIU, known by this migration's images folder
    in their arguments, and whatever lives in its own root file system, wherever that is by now, or in LXC's cgroup with
    such a one.
    Raises CopyNotEnded where that does not end, once it is fenced, or where it is not told whose that is which lives.
    """
    if not migration.memory:
        no_memory.end(container, migration.id)
    left_running.end_criu(layout)
    if not _is_ours(layout):
        return False
    another = False
    with contextlib.suppress(MigratorError, OSError):
        if cgroup := come_up.cgroup(container):  # LXC does not answer while it restores
            another = bool(lxc.processes(cgroup)) and not _is_of(layout, cgroup)
            if not another:
                (cgroup / "cgroup.kill").write_text("1")
    left = left_running.kill(layout)
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
    except OSError as error:  # a disk that cannot be written keeps nothing from its end, where the fence stands already
        if container_config.fence_of(text) != migration.id or not fences.refuses(layout.container, text):
            raise
        log.warning(f"The fence of {migration.name} could not be rewritten, and stays: {error}")
    _require_none(migration, left)
    return True


def _end_removed(migration: Migration, layout: Layout) -> None:
    """The same where no container is defined in its place any more: LXC cannot be asked, nor anything be fenced."""
    left_running.end_criu(layout)
    _require_none(migration, left_running.kill(layout))
    if not migration.memory:
        no_memory.end(layout, migration.id)  # LXC's monitor has ended with what it had started
        _require_none(migration, left_running.live_below(layout))
    _require_none(migration, _live_untold(layout))
    _clear_up(layout)


def _live_untold(layout: Layout) -> list[int]:
    """Where it may have been let run, and the snapshot that tells was removed since: nothing is concluded while these
    live.
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
