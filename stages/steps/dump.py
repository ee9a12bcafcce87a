# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a container, dumped while it is frozen and cut off its network, and sent with the last disk changes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time

import msgspec

from migrator.base import log, programs
from migrator.base.figures import size
from migrator.base.result import Result, of_dry_run
from migrator.copies import remains, thawing
from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import Task, Watchdog
from migrator.criu import (
    apart,
    bound_sockets,
    criu_dump,
    dump_notes,
    ghosts,
    image_repairs,
    mount_plan,
    terminals,
)
from migrator.errors.containers import ContainerChanged
from migrator.errors.memory import DowntimeExceeded, DumpFailed
from migrator.guest import live_steps, localtime
from migrator.host import cgroups, lxc, network
from migrator.host.mount_tables import TooManyMounts
from migrator.record import image_folders, next_commands
from migrator.record.detail import BeforeStill, Figures
from migrator.record.next_commands import this_host
from migrator.transfer import spool
from stages.steps import changed_since, examine, offer, send_memory
from stages.steps.standstill import Standstill


class Dump:
    """Freeze, dump, send; the source is thawed if anything fails before the token is offered."""

    fence_first = False  # frozen, it needs no fence until it is about to be offered

    def __init__(self, standstill: Standstill, looked: examine.Look) -> None:
        self.standstill = standstill
        self.migration = standstill.migration
        self.container = container = standstill.container
        self.facts = looked.container
        self.nftables_lock = all(host and criu_dump.NFTABLES_LOCK in host.criu.features
                                 for host in (looked.source, looked.destination))
        self.pid = container.init_pid
        self.init = remains.init_of(container)
        self.cgroup = container.cgroup
        self.ports = network.ports(self.pid)
        try:
            self.terminals = terminals.found(self.pid)
        except TooManyMounts as error:
            raise DumpFailed(name=container.name, reason=str(error), log="not there") from error
        self.images = standstill.layout.image_folders()[0]

    def described(self) -> Result:
        """For --dry-run: the commands of both hosts."""
        here, there = this_host(), self.standstill.there.peer_host
        snapshot, *send = self.standstill.increment_commands()
        return of_dry_run([
            (here, ["tee", f"{self.cgroup}/cgroup.freeze"]),
            *([(here, network.silence_command(self.migration.id, self.ports))] if self.ports else []),
            snapshot,
            (here, self.dump_command()),
            *send,
            (there, ["tee", f"{self.standstill.target.image_folders()[0]}/*.img"]),
        ])

    def dump_command(self) -> list[str]:
        mounts = [entry.target for entry in self.facts.config.mounts if entry.bind]
        return criu_dump.dump_command(self.pid, self.cgroup, self.images, mounts, self.terminals,
                                 nftables_lock=self.nftables_lock)

    def prepare(self) -> None:
        # Raises now if the port has a name that it cannot handle.
        network.silence_command(self.migration.id, self.ports)
        programs.find("criu", criu_dump.path())  # before the freeze
        with contextlib.suppress(OSError):  # a process is just ending: look again once it is frozen
            self._notes()
        room = apart.room()
        self.images, why = image_folders.provide_images(self.standstill.layout.image_folders(), self.facts.memory, room)
        log.verbose(f"Images go to {self.images}: {why}")
        spool.check_space(self.images, self.facts.memory, what=f"the memory of {self.container.name}")
        frozen = Frozen(self.migration.id, self.container.name, self.container.lxcpath, self.pid, self.cgroup,
                        tuple(self.ports), started=self.init.start if self.init and self.init.pid == self.pid else None)
        self.watchdog = Watchdog(Task(
            frozen, offer.attempt(self.migration), tuple(map(str, self.standstill.layout.dumped_into())),
            self.standstill.max_downtime, str(self.migration.journal_path)))
        live_steps.make_ready(self.container.name, self.pid, lambda: cgroups.processes(str(self.cgroup)),
                              watched=any(note.kind == "watch-symlink" and note.detail == localtime.PATH
                                          for note in self.facts.tasks.notes))
        self.watchdog.start()

    def unprepared(self) -> None:
        live_steps.put_back(self.container.name, self.pid)

    def record(self) -> BeforeStill:
        found = remains.record(self.container)
        try:
            if self.init is None or found.init != self.init or self.init.pid != self.pid:
                raise self._rebooted()
            changed_since.refuse_another_disk(self.migration, self.pid, self.container.rootfs, self.standstill.ignore)
        except ContainerChanged:
            self.unwatched()
            raise
        return msgspec.structs.replace(found, frozen_at=self.standstill.since, pid=self.pid, cgroup=str(self.cgroup),
                                       ports=self.ports)

    def _rebooted(self) -> ContainerChanged:
        """The error for a container that rebooted: the watchdog knows one start of it and thaws no other."""
        return changed_since.error(self.migration, "it has just been rebooted or stopped")

    def take(self) -> Figures:
        with concurrent.futures.ThreadPoolExecutor(1, "dump") as pool:  # leaving this block waits for the dump
            # If Ctrl-C came while a thread was being started, it would not wait; so start the thread now.
            pool.submit(lambda: None).result()
            self._freeze()
            return self._dump_and_send(pool)

    def stop_clock(self) -> None:
        if self.watchdog.stop_clock():
            raise DowntimeExceeded(name=self.container.name, seconds=f"{self.standstill.max_downtime:g}")
        if remains.was_thawed(self.migration):
            raise changed_since.error(self.migration, "someone thawed it while it was being dumped")

    def unwatched(self) -> None:
        self.watchdog.dismiss()

    def left_alone(self) -> None:
        self.watchdog.leave()

    def result(self, figures: Figures, still: float) -> Result:
        if not self.standstill.one_shot:  # with one_shot it still holds the container; finish does it
            self.standstill.layout.drop_images()
        next_ = next_commands.next_command(self.migration)
        return Result(
            {"migration": self.migration.id, "name": self.container.name, "stage": "create-dump", "already": False,
             "frozen_at": self.standstill.since, "frozen_seconds": round(still, 3), **figures.to_json(), "next": next_},
            f"Dumped {size(figures.memory)} of memory and {size(figures.increment)} of disk changes. "
            f"{self.container.name} has been frozen for {still:.2f} s; {self.standstill.there.peer_host} owns it now. "
            f"Next: {next_}",
        )

    # --- the steps ---

    def _freeze(self) -> None:
        with self.migration.step("freeze"):
            self.watchdog.begins()
            try:
                lxc.freeze(self.container, self.cgroup)
            finally:
                rebooted = not remains.first_is_here(self.migration)  # at this very moment
                if rebooted:  # nobody else would thaw that start
                    with thawing.undisturbed(), contextlib.suppress(OSError):  # it may just have ended
                        lxc.thaw(self.container, self.cgroup)
            if rebooted:
                raise self._rebooted()
            changed_since.refuse_frozen_besides(self.migration, self.cgroup)
            changed_since.refuse_strangers(self.migration, self.pid, self.cgroup, self.standstill.ignore)
            changed_since.refuse_encrypted(self.migration, self.pid, self.cgroup, self.standstill.ignore)
            network.silence(self.migration.id, self.ports)
            if self.ports:
                dad = network.dad_settings(self.pid)
                self.watchdog.note_dad(dad)
                self.migration.note("hush-dad", dad=dad)
                network.hush_dad(self.pid, dad)

    def _dump_and_send(self, pool: concurrent.futures.Executor) -> Figures:
        """Dump while the snapshot is made and its increment sent; both see the frozen container."""
        dumping = pool.submit(self._dump)
        try:
            increment = self.standstill.send_increment()
            early = send_memory.send_pages(self.standstill, self.images, self.facts.memory, dumping.done)
        finally:
            dump_seconds = dumping.result()  # CRIU must have let go before anyone thaws
        self.standstill.left()
        rest = send_memory.send_images(self.standstill, self.images, early)
        sent = [*early.values(), rest]
        return Figures(increment=increment.raw_bytes, memory=sum(each.raw_bytes for each in sent),
                       wire_bytes=increment.wire_bytes + sum(each.wire_bytes for each in sent),
                       dump_seconds=round(dump_seconds, 3), send_seconds=round(rest.seconds, 3))

    def _dump(self) -> float:
        begun = time.monotonic()
        dump_notes.write(self.images, self._notes())
        criu_dump.dump(self.container.name, self.dump_command(), self.images)
        # Strangers that came while CRIU had it thawed; any that come later are frozen at once.
        changed_since.refuse_strangers(self.migration, self.pid, self.cgroup, self.standstill.ignore)
        # A process that changed its root since is not the one CRIU is told of.
        changed_since.refuse_another_disk(self.migration, self.pid, self.container.rootfs, self.standstill.ignore)
        try:
            mount_plan.require(self.images)  # mounts made since the preflight
            ghosts.require_here(self.images, self.pid)
            bound_sockets.require_here(self.images, self.pid, cgroups.processes(str(self.cgroup)))
            image_repairs.repair(self.images, str(self.cgroup))
        except (OSError, ValueError) as error:
            raise DumpFailed(name=self.container.name, reason=str(error), log="not there") from error
        return time.monotonic() - begun

    def _notes(self) -> dict[str, bytes]:
        return dump_notes.found(self.container.name, self.pid, str(self.cgroup), self.terminals)
