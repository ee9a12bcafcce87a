# SPDX-License-Identifier: GPL-2.0-or-later
"""The container is restored, or started, on the destination."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from migrator.base import boot_clock, bounded_read, log
from migrator.base.bounded_thread import Beside
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import late_start, no_memory
from migrator.criu import criu_dump, ran_mark, restore
from migrator.errors import MigratorError
from migrator.errors.connection import ConsentNeeded
from migrator.errors.containers import AlreadyRuns, OutOfOrder
from migrator.errors.convert import as_ours
from migrator.errors.memory import DowntimeExceeded, RestoreFailed, StartFailed
from migrator.errors.outcomes import SourceStillFrozen, outcome
from migrator.errors.ownership import WordOver
from migrator.guest import live_steps
from migrator.host import btrfs, lxc, network
from migrator.record import grant, lxc_disk, next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer import spool
from stages.steps import consented, prologue, settling, unrecorded
from stages.steps.import_round import receive
from stages.steps.put_away import give_back_rootfs, put_aside, put_rootfs_aside
from stages.steps.standstill import INCREMENT

STAGE = "restore-dump"


def carry_out(migration: Migration, limit: float, end: float, *, dry_run: bool = False, forced: bool = False) -> Result:
    """The stage, with the container locked, within `limit` seconds; it is let run before `end` or not at all.

    `forced`: the source, which could otherwise go on with it, is lost for good.

    Raises DiskAway, with nothing recorded.
    """
    decision = decide(STAGE, migration.state)
    next_ = next_commands.again(decision.next_stage, migration) if decision.next_stage else ""
    if decision.verdict is Verdict.ALREADY:
        return prologue.already(STAGE, migration, f"{migration.name} already runs here.", next_)
    if decision.verdict is Verdict.REFUSE:
        raise OutOfOrder(stage=STAGE, missing=decision.missing, next=next_)
    if dry_run:
        return described(migration)
    lxc_disk.require(Layout.of(migration))
    take_offered(migration, forced=forced)
    return Restore(migration, limit, leave=lambda: end).run()


def described(migration: Migration) -> Result:
    """For --dry-run."""
    return Restore(migration, 0.0, leave=lambda: 0.0).described()


def take_offered(migration: Migration, *, forced: bool = False) -> None:
    """Everything has arrived and been offered, but a crash kept this host from recording that it takes the token.

    Raises SourceStillFrozen, with nothing recorded, if it no longer may: the offer, when made again, is then refused.
    If it is `forced`, nobody can make the offer again and what is here is the only copy: it is taken, and reported.
    """
    if migration.state is State.DUMP_RECEIVED:
        try:
            consented.require(migration)
        except ConsentNeeded as error:
            if not forced:
                raise still_frozen(migration, error) from error
            log.warning(f"Running it anyway, as its source is lost: {error}")
        migration.move(Event.OWN)


def still_frozen(migration: Migration, error: BaseException) -> MigratorError:
    """The error for what keeps it from being let run here while its source holds it."""
    return outcome(SourceStillFrozen, memory=migration.memory)(
        as_ours(error), name=migration.name, source=migration.peer, next=next_commands.next_command(migration),
        rollback=next_commands.command("rollback@source", migration))


class Restore:
    """One restore-dump: its steps in their order, and the way back."""

    def __init__(self, migration: Migration, limit: float, service: Service | None = None, *,
                 leave: Callable[[], float]) -> None:
        self.migration = migration
        self.leave = leave  # returns until when the container may be let run, by `boot_clock.now`, or raises
        self.end = boot_clock.now() + limit
        self.limit = limit
        # What this very process has received and checked need not be received and checked again.
        self.behind = service.behind if service else None
        self.checked = service is not None and service.images_of == migration.id
        self.layout = Layout.of(migration)
        self.images = self.layout.images()
        self.number = len(migration.data.rounds) + 1
        self.container = lxc.Container(migration.name, migration.lxcpath)
        self.runs_since = 0.0  # by time.time(), if it was before the end of the last step

    def described(self) -> Result:
        """For --dry-run."""
        here = this_host()
        images = self.images or self.layout.image_folders()[0]
        name, lxcpath = self.migration.name, self.migration.lxcpath
        return of_dry_run([
            (here, btrfs.receive_command(self.layout.folder)),
            (here, btrfs.snapshot_command(self.layout.snapshot(self.number), self.layout.rootfs, read_only=False)),
            (here, restore.command(self.layout, images) if self.migration.memory
             else no_memory.start_command(name, lxcpath, self.plain_config)),
        ])

    @property
    def plain_config(self) -> Path:
        """The configuration without the fence."""
        return self.layout.spool / restore.START_CONFIG

    def run(self, *, wait: bool = True) -> Result:
        """Do it; without `wait`, the last announcements are made after the return."""
        name, begun = self.migration.name, time.time()
        with lxc_disk.held(self.layout):  # the mark that it has run is on that disk
            unrecorded.require_ours(self.migration, self.layout)
            self._keep_what_ran()
            unrecorded.refuse_in_place(self.migration, self.layout)
        self.migration.move(Event.RESTORE)
        try:
            self._refuse_former()
            images = self._images() if self.migration.memory else None
            prepared = self._apply(images)
            self.end = min(self.end, self.leave())
            pid = self._restore(images, prepared) if images and prepared else self._start()
        except BaseException as error:
            self._undo(error)
        restored_at = self.runs_since or time.time()
        announcing = network.announce(pid)
        network.bring_back_dad(pid, self.migration.still.dad)
        settling.record(self.migration, restored_at)
        container_config.unfence(self.layout.container, self.migration.id)
        if self.migration.memory:
            restore.complete(self.container, self.layout)
        self._tidy()
        if self.migration.memory:
            live_steps.put_back(name, pid)
        if wait:
            announcing.join()
        next_ = next_commands.next_command(self.migration)
        return Result(
            {"migration": self.migration.id, "name": name, "stage": STAGE, "already": False, "pid": pid,
             "restored_at": restored_at, "seconds": round(restored_at - begun, 3), "next": next_},
            f"{name} runs here. Next: {next_}",
        )

    # --- the steps ---

    def _keep_what_ran(self) -> None:
        """Do not take what an earlier restore let run for this one's; raises AlreadyRuns if it is still running.

        That is then recorded: a refusal alone would make the source take the token back.
        """
        mark = ran_mark.mark(self.layout.spool)
        if ran_mark.was(mark):
            name = self.migration.name
            if lxc.told_state(self.container) != "STOPPED" or lxc.runs_in(name, self.layout.rootfs):
                self.migration.move(Event.RESTORE)
                settling.settle(self.migration)
                if self.migration.state is State.RESTORED:
                    raise AlreadyRuns(name=name, destination=this_host(),
                                      next=next_commands.command("finish@source", self.migration))
            put_aside(self.layout)
            ran_mark.drop(mark)

    def _refuse_former(self) -> None:
        if self.layout.began_formerly():
            raise RestoreFailed(name=self.migration.name, log="not there", reason="an older version of migrator has "
                                                                                  "received what this one would need, "
                                                                                  "and kept it in a different place")

    def _images(self) -> Path:
        if self.images is None:
            raise RestoreFailed(name=self.migration.name, log="not there",
                                reason="its memory images are gone, as after a reboot")
        return self.images

    def _apply(self, images: Path | None) -> restore.Prepared | None:
        """Check the images and prepare the restore while the increment is received; then put the disk in place."""
        # That of a failed restore, recognised as ours by its increment, which is about to be replaced.
        give_back_rootfs(self.layout)
        with Beside(self._left) as beside:
            names = self.migration.handover.image_files if images and not self.checked else []
            verified = beside.begin(restore.verify, images, names) if images else lambda: None
            prepared = images and beside.begin(restore.prepare, self.container, self.layout, images, beside.making,
                                               grant.of_migration(self.migration).hooks)
            last = receive(self.migration, self.layout, self.layout.spool / INCREMENT, self.number,
                           self.migration.handover.increment_uuid, self.behind, self._left)
            verified()
            made = prepared() if prepared else None
        with self.migration.step("rootfs") as done:
            put_rootfs_aside(self.layout)
            done.rootfs_uuid = btrfs.snapshot(last.path, self.layout.rootfs, read_only=False).uuid
            done.on_disk_uuid = last.uuid  # see `bases.on_disk`: nobody has waited for it to be synced
        return made

    def _restore(self, images: Path, prepared: restore.Prepared) -> int:
        """CRIU and LXC do their part; then the container must be there, with its processes, and not frozen."""
        with self.migration.step("restore", end_must_be=False) as done:
            container = self.container
            done.reason = prepared.not_taken or None
            restore.restore(container, self.layout, images, prepared, limit=self._left(), end=self.end)
            pid, cgroup = container.init_pid, container.cgroup
            lxc.thaw(container, cgroup)  # it was frozen when dumped, and CRIU restores that too
            if not lxc.processes(cgroup):
                raise RestoreFailed(name=container.name, reason="it has no processes", log=images / "restore.log")
            return pid

    def _start(self) -> int:
        """Only the disk came along: start the container from it."""
        with self.migration.step("start", end_must_be=False) as done:
            container = self.container
            done.reason = restore.CONFINED if consented.confine(self.migration) else None
            own = container.config_file
            text = container_config.unfenced(container_config.text_of(own))
            container_config.require_rootfs(container.name, own, text, self.layout.rootfs)
            container_config.write_file(self.plain_config, late_start.refused(text, own, self.end), mode=0o600)
            log_file = no_memory.log_of(container, anew=True)  # now, because the source's word is checked last
            try:
                ran_mark.record_in_time(str(ran_mark.mark(self.layout.spool)), self.end)
            except TimeoutError as error:
                raise WordOver(name=container.name, next=next_commands.again("restore-dump", self.migration)) from error
            try:
                pid = no_memory.start(container, self.migration.id, config=self.plain_config, limit=self._left(),
                                      log_file=log_file)
            except StartFailed as error:
                if no_memory.never_ran(error):  # what may have run, if only for a moment, is put aside
                    ran_mark.drop(ran_mark.mark(self.layout.spool))
                raise
            self.runs_since = time.time()
            network.announce(pid, (0.0,)).join()
            no_memory.stay(container, self.migration.id, pid)
            return pid

    def _left(self) -> float:
        """Seconds that this may still take; raises DowntimeExceeded if there are none."""
        left = self.end - boot_clock.now()
        if left <= 0:
            raise DowntimeExceeded(name=self.migration.name, seconds=f"{self.limit:g}")
        return left

    def _tidy(self) -> None:
        self.layout.drop_images()
        spool.drop(self.layout.spool / INCREMENT)

    # --- the way back ---

    def _undo(self, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # its disk is full, which must not keep the restore from being undone
            self._keep_log(error)
        settling.clear(self.migration)  # what may have run is put aside
        self.migration.move(Event.RESTORE_FAILED, failed=str(error)[:2000])
        raise still_frozen(self.migration, error) from error

    def _keep_log(self, error: BaseException) -> None:
        """Keep the end of CRIU's log beyond the attempt, where the error says it is."""
        source = (self.images or Path("/nonexistent")) / "restore.log"
        if source.is_file():
            kept = criu_dump.log_path(self.migration.name, "restore")
            container_config.write_file(kept, bounded_read.tail(source), mode=0o600)
            if isinstance(error, RestoreFailed):
                error.fields["log"] = kept
