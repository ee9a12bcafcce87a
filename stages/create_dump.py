"""Freeze the container, dump its memory, and send that with what has changed on its disk since the last round.

Memory and disk are of one instant: the snapshot is made and the memory dumped while the container is frozen and off
its network. When all of it has arrived and was verified, the destination takes the ownership over; from then on only
it may let the container run. The source stays frozen, with all its memory, until `finish` or `rollback`. When anything
fails before, the container is thawed and runs on. Next comes `migrator restore-dump` on the destination.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from migrator import advice, btrfs, cli, container_config, criu, layout, log, lxc, names, network, spool, transfer
from migrator.advice import this_host
from migrator.cli import Result
from migrator.errors import (
    ContainerChanged,
    ContainerNotRunning,
    DowntimeExceeded,
    DumpRefused,
    InternalError,
    MigratorError,
    NoMigration,
    OutOfOrder,
    UsageError,
)
from migrator.growing import POLL, Growing
from migrator.journal import DEFAULT_PATH, Journal, Migration
from migrator.layout import Layout, locked
from migrator.peer import connected, require_stable_path
from migrator.preflight.container_facts import ContainerFacts
from migrator.progress import Progress
from migrator.protocol import Connection
from migrator.report import size
from migrator.service import Place, Service
from migrator.states import Event, Role, State, Verdict, decide
from stages import check, offer, prepare_data
from stages.rollback import thaw_source

NAME = "create-dump"
HELP = "freeze the container and send its memory (on the source)"
INCREMENT = "increment"  # the spooled file with the last disk changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_container(parser)
    cli.add_destination(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=cli.positive, default=120.0,
                        help="thaw and give up when dump and transfer take longer (default: %(default)g)")
    check.add_ignore(parser)
    cli.add_dry_run(parser)


# --- on the source --------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> Result:
    cli.require_root(NAME)
    name, lxcpath = cli.container_of(args)
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, locked(name):
        migration = journal.latest(name, lxcpath, Role.SOURCE)
        if migration is None:
            raise NoMigration(name=name, stage=NAME, next=f"migrator prepare-data {name} -d {args.destination}")
        if migration.state is State.DUMPING:
            heal(migration)
        if migration.state is State.PREPARED and container.state != "RUNNING":
            raise ContainerNotRunning(name=name, lxcpath=lxcpath, state=container.state)
        with connected(args, args.destination) as there:
            return carry_out(args, migration, container, there)


def carry_out(args: argparse.Namespace, migration: Migration, container: lxc.Container, there: Connection) -> Result:
    """The stage over a connection that is there; `heal` has been called before where it was killed."""
    name = migration.name
    state_there = prepare_data.state_there(there, migration)
    decision = decide(NAME, migration.state, state_there)
    next_ = advice.command(decision.next_stage, migration) if decision.next_stage else ""
    offer.settle(migration, state_there)
    if decision.verdict is Verdict.REFUSE:
        raise OutOfOrder(stage=NAME, missing=decision.missing, next=next_)
    if migration.state is State.OFFERED and not args.dry_run:
        offer.make(migration, there)
        next_ = advice.next_command(migration)
    if migration.state is State.DUMPED:
        return Result({"migration": migration.id, "name": name, "stage": NAME, "already": True, "next": next_},
                      f"{name} has already been dumped and handed over. Next: {next_}")
    _refuse_changed(migration, container)
    looked = check.before_stage(args, container, there, known_copy=True, bridges=migration.detail["bridges"])
    dump = Dump(args, migration, container, there, looked.container)
    if args.dry_run:
        return dump.described()
    require_stable_path(args)
    return dump.run()


def heal(migration: Migration) -> None:
    """An earlier create-dump was killed before it offered the token: the container is ours, thaw it and begin anew."""
    log.warning(f"An earlier create-dump of {migration.name} was killed; the container is thawed first")
    thaw_source(migration)
    migration.move(Event.THAW)


def _refuse_changed(migration: Migration, container: lxc.Container) -> None:
    config = container_config.read(container.config_file, container.name)
    if config.digest != migration.detail["config_digest"]:
        next_ = advice.command("prepare-data", migration)
        raise ContainerChanged(name=container.name, reason="its configuration is another", next=next_)
    base = Layout(container.lxcpath, container.name, migration.id).snapshot(len(migration.detail["rounds"]))
    if not btrfs.is_subvolume(base):
        next_ = advice.command("rollback", migration)
        raise ContainerChanged(name=container.name, reason=f"the snapshot {base} is gone", next=next_)


class Dump:
    """One create-dump: its steps in their order, and the way back from each."""

    def __init__(self, args: argparse.Namespace, migration: Migration, container: lxc.Container,
                 there: Connection, facts: ContainerFacts) -> None:
        self.migration = migration
        self.container = container
        self.there = there
        self.facts = facts
        self.max_downtime: float = args.max_downtime
        self.one_shot = prepare_data.one_shot(args)
        self.layout = Layout(container.lxcpath, container.name, migration.id)
        self.base = self.layout.snapshot(len(migration.detail["rounds"]))
        self.last = self.layout.snapshot(len(migration.detail["rounds"]) + 1)
        self.pid = container.init_pid
        self.cgroup = container.cgroup
        self.ports = network.ports(self.pid)
        self.images = self.layout.image_folders()[0]
        self.frozen_since = 0.0

    def described(self) -> Result:
        """For --dry-run: the commands of both hosts."""
        here, there = this_host(), self.there.peer_host
        target = Layout(Path(self.migration.detail["destination_lxcpath"]), self.container.name, self.migration.id)
        return cli.dry_run([
            (here, ["tee", f"{self.cgroup}/cgroup.freeze"]),
            *((here, network.unplug_command(port)) for port in self.ports if port.bridge),
            (here, btrfs.snapshot_command(self.container.rootfs, self.last, read_only=True)),
            (here, self.dump_command()),
            (here, btrfs.send_command(self.last, self.base)),
            (there, ["tee", str(target.spool / INCREMENT)]),
            (there, ["tee", f"{target.image_folders()[0]}/*.img"]),
        ])

    def dump_command(self) -> list[str]:
        mounts = [entry.target for entry in self.facts.config.mounts if entry.bind]
        return criu.dump_command(self.pid, self.cgroup, self.images, mounts, criu.console(self.pid))

    def run(self) -> Result:
        """Freeze, dump, send, hand over; the source is thawed when anything fails before the token was offered."""
        self.there.call("dump-begin", id=self.migration.id)
        self._prepare()
        self.frozen_since = time.time()
        self.migration.move(Event.FREEZE, frozen_at=self.frozen_since, pid=self.pid, cgroup=str(self.cgroup),
                            ports=[port.to_json() for port in self.ports])
        try:
            self._freeze()
            figures = self._dump_and_send()
            self._fence()
            self.migration.move(Event.OFFER, figures=figures)
        except BaseException as error:
            offer.give_up(self.migration, self.there, _as_ours(error))
        offer.make(self.migration, self.there)
        if not self.one_shot:  # there it still holds the container up; finish does it
            self.layout.drop_images()
        next_ = advice.next_command(self.migration)
        frozen = time.time() - self.frozen_since
        return Result(
            {"migration": self.migration.id, "name": self.container.name, "stage": NAME, "already": False,
             "frozen_at": self.frozen_since, "frozen_seconds": round(frozen, 3), **figures, "next": next_},
            f"Dumped {size(figures['memory'])} of memory and {size(figures['increment'])} of disk changes. "
            f"{self.container.name} is frozen since {frozen:.2f} s and belongs to {self.there.peer_host} now. "
            f"Next: {next_}",
        )

    # --- the steps ---

    def _prepare(self) -> None:
        """Everything that can be done before the freeze."""
        btrfs.delete(self.last)
        self.images, why = layout.place_images(self.layout, self.facts.memory)
        log.verbose(f"Images go to {self.images}: {why}")
        layout.make_images(self.images, self.container.mapped_root)

    def _freeze(self) -> None:
        with self.migration.step("freeze"):
            lxc.freeze(self.container, self.cgroup)
            network.unplug(self.ports)
            if self.ports:
                self.migration.note("hush-dad", dad=network.hush_dad(self.pid))

    def _dump_and_send(self) -> dict[str, Any]:
        """The dump runs beside the snapshot and the sending of its increment; both see the frozen container."""
        with concurrent.futures.ThreadPoolExecutor(1, "dump") as pool:
            dumping = pool.submit(self._dump)
            try:
                increment = self._send_increment()
                early = self._send_pages(dumping.done)
            finally:
                dump_seconds = dumping.result()  # CRIU must have let go before anybody thaws
        self._left()
        rest = self._send_images(early)
        sent = [*early.values(), rest]
        return {"increment": increment.raw_bytes, "memory": sum(each.raw_bytes for each in sent),
                "wire_bytes": increment.wire_bytes + sum(each.wire_bytes for each in sent),
                "dump_seconds": round(dump_seconds, 3), "send_seconds": round(rest.seconds, 3)}

    def _dump(self) -> float:
        begun = time.monotonic()
        if terminal := criu.console(self.pid):
            (self.images / criu.CONSOLE_FILE).write_text(terminal)
        criu.dump(self.container.name, self.dump_command(), self.images)
        return time.monotonic() - begun

    def _send_increment(self) -> transfer.TransferResult:
        with self.migration.step("increment") as outcome:
            made = btrfs.snapshot(self.container.rootfs, self.last, read_only=True)
            with btrfs.send(self.last, self.base) as stream:
                sent = transfer.send_files(
                    self.there,
                    {"kind": "increment", "id": self.migration.id, "uuid": made.uuid, "behind": self.one_shot},
                    [transfer.SourceFile(INCREMENT, stream, None)], progress=self._watch,
                )
            outcome.update(bytes=sent.raw_bytes, seconds=round(sent.seconds, 3))
        return sent

    def _send_pages(self, has_ended: Callable[[], bool]) -> dict[str, transfer.TransferResult]:
        """Send memory while CRIU still dumps it: it writes one file of pages after the other, each to its end."""
        sent: dict[str, transfer.TransferResult] = {}
        with self.migration.step("pages") as outcome:
            while not has_ended():
                path, next_ = (self.images / f"pages-{len(sent) + ahead}.img" for ahead in (1, 2))
                if not path.exists():
                    self._left()
                    time.sleep(POLL)
                    continue
                with Growing(path, lambda next_=next_: has_ended() or next_.exists()) as reader:  # type: ignore[misc]
                    fields = {"kind": "images", "id": self.migration.id, "bytes": self.facts.memory, "first": not sent}
                    sent[path.name] = transfer.send_files(
                        self.there, fields, [transfer.SourceFile(path.name, reader, None)], progress=self._watch)
            outcome.update(bytes=sum(each.raw_bytes for each in sent.values()), files=len(sent),
                           wire=sum(each.wire_bytes for each in sent.values()))
        return sent

    def _send_images(self, early: dict[str, transfer.TransferResult]) -> transfer.TransferResult:
        """All images but those that were sent early to their end."""
        paths = [path for path in criu.image_files(self.images)
                 if path.name not in early or path.stat().st_size != early[path.name].raw_bytes]
        total = sum(path.stat().st_size for path in paths)
        with self.migration.step("images") as outcome, contextlib.ExitStack() as stack:
            progress = stack.enter_context(Progress("memory", total))
            files = [transfer.SourceFile(path.name, path, path.stat().st_size) for path in paths]

            def watch(done: int) -> None:
                self._watch(done)
                progress.update(done)

            fields = {"kind": "images", "id": self.migration.id, "bytes": total, "first": not early}
            sent = transfer.send_files(self.there, fields, files, progress=watch)
            outcome.update(bytes=sent.raw_bytes, wire=sent.wire_bytes, seconds=round(sent.seconds, 3))
        return sent

    def _fence(self) -> None:
        """From the offer on this host must not start the container anew: not by hand, and not at boot after a crash."""
        container = self.container
        message = (f"{container.name} is being moved to {self.there.peer_host} (migration {self.migration.id}), which"
                   f" may run it by now. See: migrator status {container.name}")
        container_config.fence(container.folder, container.config_file.read_text(), self.migration.id, message)

    def _left(self) -> float:
        """Seconds that the container may still stay frozen; raises DowntimeExceeded when there are none."""
        left = self.frozen_since + self.max_downtime - time.time()
        if left <= 0:
            raise DowntimeExceeded(name=self.container.name, seconds=f"{self.max_downtime:g}")
        return left

    def _watch(self, _done: int) -> None:
        self._left()


def _as_ours(error: BaseException) -> MigratorError:
    if isinstance(error, MigratorError):
        return error
    if log.level >= log.Level.DEBUG:
        import traceback

        traceback.print_exception(error)
    return InternalError(reason=f"{type(error).__name__}: {error}")


# --- on the destination ---------------------------------------------------------------------------------------


def dump_begin(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """A dump is about to come; what is left of an earlier one goes."""
    migration = service.migration(fields)
    here = Layout(migration.lxcpath, migration.name, migration.id)
    migration.move(Event.RECEIVE_DUMP)
    _drop_dump(service, migration, here)
    return {"state": migration.state}


def _drop_dump(service: Service, migration: Migration, here: Layout) -> None:
    here.drop_images()
    spool.drop(here.spool / INCREMENT)
    service.wait_behind()
    btrfs.delete(here.snapshot(len(migration.detail["rounds"]) + 1))  # received behind the transfer


def dump_drop(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """The source has thawed: this dump will never be restored."""
    migration = service.migration(fields)
    if migration.state in (State.RECEIVING_DUMP, State.DUMP_RECEIVED):
        migration.move(Event.DROP_DUMP)
        _drop_dump(service, migration, Layout(migration.lxcpath, migration.name, migration.id))
    return {"state": migration.state}


def receive_increment(service: Service, fields: dict[str, Any]) -> Place:
    """Where the increment goes."""
    migration = service.migration(fields)
    _must_receive_dump(migration)
    migration.note("increment", increment_uuid=str(fields["uuid"])[:36])
    here = Layout(migration.lxcpath, migration.name, migration.id)
    target = here.snapshot(len(migration.detail["rounds"]) + 1)
    behind = service.import_behind(here.spool / INCREMENT, target) if fields.get("behind") else None
    return Place(here.spool, True, behind)


def receive_images(service: Service, fields: dict[str, Any]) -> Place:
    """Where the images go: memory if there is enough. They need not be on disk, as the source keeps what they hold."""
    migration = service.migration(fields)
    _must_receive_dump(migration)
    here = Layout(migration.lxcpath, migration.name, migration.id)
    folder = None if fields.get("first", True) else here.images()
    if folder is None:
        needed = int(fields["bytes"])
        folder, why = layout.place_images(here, needed)
        spool.check_space(folder.parent if folder.parent.is_dir() else folder.parent.parent, needed,
                          what=f"the memory of {migration.name}")
        layout.make_images(folder, migration.detail["mapped_root"])
        migration.note("images", images=str(folder), why=why)
    service.images_of = migration.id
    return Place(folder, False)


def _must_receive_dump(migration: Migration) -> None:
    if migration.state is not State.RECEIVING_DUMP:
        raise UsageError(reason=f"migration {migration.id} is in state {migration.state}, it expects no dump")


def own(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """Take the token over: from the moment this is recorded, only this host may let the container run."""
    migration = service.migration(fields)
    if migration.state in (State.IMPORTED, State.ABANDONING, State.ABANDONED):
        raise DumpRefused(name=migration.name, reason=f"it is {migration.state} there")
    if migration.state not in (State.OWNED, State.RESTORING, State.RESTORED):
        here = Layout(migration.lxcpath, migration.name, migration.id)
        images = here.images()
        if images is None or not spool.is_complete(here.spool / INCREMENT):
            raise DumpRefused(name=migration.name, reason="not all of its dump has arrived")
        files = criu.image_files(images)
        for path in files:
            if not spool.is_complete(path):
                raise DumpRefused(name=migration.name, reason=f"the image {path.name} is not complete")
        layout.give_images(files, migration.detail["mapped_root"])
        dad = {names.interface_name(str(name)): str(int(value)) for name, value in fields["dad"].items()}
        migration.move(Event.DUMP_RECEIVED, image_files=[path.name for path in files], dad=dad)
        migration.move(Event.OWN)
    return {"state": migration.state}


HANDLERS = {"dump-begin": dump_begin, "dump-drop": dump_drop, "own": own}
RECEIVERS = {"increment": receive_increment, "images": receive_images}
