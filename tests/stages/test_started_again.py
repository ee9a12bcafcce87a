# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that was stopped to move without its memory is started again here, where nothing can be written any more.

The disk of the journal is full, or the one that the container lies on.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base import log, names
from migrator.config import container_config
from migrator.copies import after_crash, no_memory, origins, remains
from migrator.criu import criu_dump
from migrator.errors import InternalError
from migrator.errors.containers import ContainerNotFound, ContainerNotRunning, DiskAway
from migrator.errors.memory import StartFailed
from migrator.errors.outcomes import SourceStartedAgain, SourceStillStopped
from migrator.errors.this_host import CommandFailed, JournalBroken
from migrator.host import lxc, network
from migrator.record import image_folders, migration_paths
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import give_back, offer, thaw_again
from tests.stages.answering import UUID
from tests.stages.downtimes import TOO_LATE, There
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.snapshots import SENT, disk, snapshot  # noqa: F401 -- a fixture

ID, ROOTFS = "0badc0de", "33333333-2222-3333-4444-555555555555"


class Stopped:
    """As LXC sees it."""

    state = "STOPPED"

    def __init__(self, name: str, lxcpath: Path) -> None:
        self.name, self.lxcpath = name, lxcpath
        self.folder = lxcpath / name
        self.config_file, self.rootfs = self.folder / "config", self.folder / "rootfs"


@pytest.fixture
def stopped(journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Migration]:
    """It has been stopped and fenced, and nobody was offered the token."""
    migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostb",
                               event=Event.SEND, memory=False, rounds=[{"bytes": 1}], destination_lxcpath="/pool")
    migration.move(Event.SENT)
    migration.move(Event.FREEZE, stopped_at=1.0, stop_timeout=1, stopping=True, init=[1, 1], cgroup="/nowhere",
                   rootfs_uuid=ROOTFS)
    (migration.lxcpath / "web" / "rootfs").mkdir(parents=True)
    (migration.lxcpath / "web" / "rootfs" / "uuid").write_text(ROOTFS)
    container_config.fence(migration.lxcpath / "web", "lxc.uts.name = web\n", ID, "no")
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(lxc, "Container", Stopped)
    monkeypatch.setattr(no_memory, "runs", lambda *_: False)
    monkeypatch.setattr(no_memory, "end", lambda *_: None)
    monkeypatch.setattr(no_memory, "stay", lambda *_: None)
    monkeypatch.setattr(network, "announce", lambda *_: pytest.fail("it has no process"))
    monkeypatch.setattr(remains, "init_of", lambda _: None)
    yield migration


@pytest.fixture
def started(stopped: Migration, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configuration of each start, and which rounds are on disk then."""
    found: list[str] = []

    def start(container: Stopped, id_: str, *, config: Path | None = None) -> int:
        config = config or container.config_file
        rounds = ",".join(path.name for path in migration_paths.Layout(container.lxcpath, "web", id_).own_snapshots())
        found.append(f"{config.read_text().strip()}; {rounds}")
        return 77

    monkeypatch.setattr(no_memory, "start", start)
    monkeypatch.setattr(Stopped, "init_pid", property(no_process), raising=False)
    return found


def no_process(container: Stopped) -> int:
    raise ContainerNotRunning(name="web", lxcpath=container.lxcpath, state="STOPPED")


def full_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path="journal.db", reason="database or disk is full")

    monkeypatch.setattr(Migration, "_event", full)
    monkeypatch.setattr(Migration, "_write", full)


def full_pool(monkeypatch: pytest.MonkeyPatch, pool: Path) -> None:
    honest = container_config.write_file

    def write(path: Path, text: str, **options: Any) -> None:
        if path.is_relative_to(pool / "web"):
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(path, text, **options)

    monkeypatch.setattr(container_config, "write_file", write)


def fence_of(migration: Migration) -> str:
    return container_config.fence_of((migration.lxcpath / "web" / "config").read_text())


@pytest.mark.parametrize("full", ["journal", "pool"])
def test_it_is_started_with_a_full_disk(stopped: Migration, started: list[str], monkeypatch: pytest.MonkeyPatch,
                                        full: str, tmp_path: Path) -> None:
    """From an unfenced copy in memory, after what the attempt has taken of the disk is gone."""
    snapshot(stopped, 1, UUID)
    snapshot(stopped, 2, UUID)
    told: list[str] = []
    monkeypatch.setattr(log, "warning", told.append)
    if full == "journal":
        full_journal(monkeypatch)
    else:
        full_pool(monkeypatch, stopped.lxcpath)
    with pytest.raises(SourceStartedAgain):
        offer.give_up(stopped, There(), TOO_LATE)  # type: ignore[arg-type]
    assert started == ["lxc.uts.name = web; 0badc0de.1"]
    assert not list((tmp_path / "run").iterdir())
    assert (fence_of(stopped) == "") is (full == "journal")
    assert any("web runs" in line for line in told)


def test_what_could_not_be_recorded_is_in_the_next_record(stopped: Migration, started: list[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as while_full:
        full_journal(while_full)
        assert thaw_again.thaw_source(stopped)
    stopped.move(Event.THAW)
    found = stopped.journal.by_id(ID, Role.SOURCE)
    assert found and found.state is State.PREPARED and found.still.stopping is False
    assert fence_of(stopped) == "" and len(started) == 1


@pytest.mark.parametrize("needs_room", [True, False])
def test_a_rollback_makes_room_for_a_start_that_fails(stopped: Migration, started: list[str], needs_room: bool,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    first, honest = snapshot(stopped, 1, UUID), no_memory.start

    def start(*args: Any, **options: Any) -> int:
        if needs_room and first.exists():
            raise StartFailed(name="web", reason="No space left on device", log="x")
        return honest(*args, **options)

    monkeypatch.setattr(no_memory, "start", start)
    full_journal(monkeypatch)
    with pytest.raises(JournalBroken):
        give_back.roll_back(stopped, lambda: UUID)
    assert started == [f"lxc.uts.name = web; {'' if needs_room else first.name}"] and fence_of(stopped) == ""


def test_with_room_it_keeps_what_both_hosts_have(stopped: Migration, started: list[str]) -> None:
    one, two = snapshot(stopped, 1, SENT), snapshot(stopped, 2, UUID)
    told = give_back.roll_back(stopped, lambda: SENT)
    assert told.data["kept"] == [str(one)] and one.is_dir() and not two.exists()
    assert len(started) == 1 and fence_of(stopped) == ""


@pytest.mark.parametrize("keeps", ["", SENT])
def test_a_rollback_makes_room_where_only_the_containers_disk_is_full(
        stopped: Migration, started: list[str], monkeypatch: pytest.MonkeyPatch, keeps: str) -> None:
    """What nobody keeps goes before the start; and what is kept when that has failed, for the next one."""
    rounds = [snapshot(stopped, 1, SENT), snapshot(stopped, 2, UUID)]
    honest = no_memory.start

    def start(*args: Any, **options: Any) -> int:
        honest(*args, **options)
        if any(path.exists() for path in rounds):
            raise StartFailed(name="web", reason="No space left on device", log="x")
        return 77

    monkeypatch.setattr(no_memory, "start", start)
    if keeps:
        with pytest.raises(SourceStillStopped):
            give_back.roll_back(stopped, lambda: keeps)
        assert started.pop(1) == "lxc.uts.name = web; 0badc0de.1" and stopped.state is State.ROLLING_BACK
        found = stopped.journal.by_id(ID, Role.SOURCE)
        assert found and found.copy.kept == [] and not any(path.exists() for path in rounds)
    told = give_back.roll_back(stopped, lambda: keeps)
    assert started.pop(0).startswith("lxc.uts.name = web; 0badc0de."), "before the other host was asked"
    assert started == ["lxc.uts.name = web; "] and stopped.state is State.ROLLED_BACK and told.data["kept"] == []


def test_a_rollback_makes_no_room_that_is_not_on_record(stopped: Migration, started: list[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has the journal: this one may be killed, and the next one find what it has recorded."""
    first = snapshot(stopped, 1, UUID)
    stopped.move(Event.OFFER)
    honest = Migration.move

    def move(of: Migration, event: Event, **detail: Any) -> None:
        if event is Event.ROLL_BACK and not started:
            cause = sqlite3.OperationalError("database is locked")
            cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise JournalBroken(path="journal.db", reason="database is locked") from cause
        honest(of, event, **detail)

    monkeypatch.setattr(Migration, "move", move)
    give_back.roll_back(stopped, lambda: "")
    assert started == ["lxc.uts.name = web; 0badc0de.1"] and not first.exists()


def test_what_does_not_start_and_may_be_gone_is_not_recorded_as_thawed(stopped: Migration,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """That a container was gone when it was thawed is what the search for its last copy begins with."""
    def fails(_: Migration) -> bool:
        raise StartFailed(name="web", reason="No space left on device", log="x")

    monkeypatch.setattr(thaw_again, "thaw_source", fails)
    monkeypatch.setattr(origins, "is_there", lambda _: False)
    with pytest.raises(StartFailed):
        give_back.roll_back(stopped, lambda: "")
    assert stopped.state is State.ROLLING_BACK and not stopped.copy.gone


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_the_fence_goes_early_of_what_was_given_back_with_its_memory(
        stopped: Migration, monkeypatch: pytest.MonkeyPatch, memory: bool, there: bool) -> None:
    """So that it comes up again with its host, were this killed while the other one is asked. What was started again
    has none by then; and what is not there must not be started by whoever finds its configuration.
    """
    stopped.note("record", memory=memory)
    snapshot(stopped, 1, UUID)  # where it is not there, this is what is left of it
    monkeypatch.setattr(origins, "is_there", lambda _: there)
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: True)
    fences: list[str] = []

    def tell() -> str:
        fences.append(fence_of(stopped))
        return ""

    give_back.roll_back(stopped, tell)
    assert fences == ["" if memory and there else ID]


@pytest.mark.parametrize("gone", [True, False])
def test_what_a_reboot_has_ended_is_given_room_too(stopped: Migration, monkeypatch: pytest.MonkeyPatch,
                                                   gone: bool) -> None:
    """And what is frozen is thawed first: that needs none, and waits."""
    first = snapshot(stopped, 1, UUID)
    stopped.note("record", memory=True)
    there: list[bool] = []
    monkeypatch.setattr("migrator.copies.remains.first_is_here", lambda _: not gone)

    def thaw(_: Migration) -> bool:
        there.append(first.exists())
        if gone and first.exists():
            raise StartFailed(name="web", reason="No space left on device", log="x")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    give_back.roll_back(stopped, lambda: "")
    assert there == ([True, False] if gone else [True]) and not first.exists()


def test_what_is_frozen_is_thawed_before_the_other_host_is_asked(stopped: Migration,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be ten minutes over its answer, and has no word in it before the offer. A reboot then starts it."""
    acts: list[str] = []
    stopped.note("record", memory=True)
    monkeypatch.setattr("migrator.copies.remains.first_is_here", lambda _: True)

    def thaw(_: Migration) -> bool:
        acts.append("thaw")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)

    def tell() -> str:
        acts.append(f"tell{fence_of(stopped)}")
        return ""

    give_back.roll_back(stopped, tell)
    assert acts == ["thaw", "tell"] and stopped.still.held is False


@pytest.mark.parametrize("memory", [True, False])
def test_so_is_what_can_only_be_started(stopped: Migration, started: list[str], memory: bool,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped without its memory, or by a reboot. Once: who stops it while the other host is asked means that."""
    stopped.note("record", memory=memory, ports=[])
    monkeypatch.setattr(remains, "require_none", lambda _: None)
    asked: list[int] = []

    def tell() -> str:
        asked.append(len(started))
        return ""

    told = give_back.roll_back(stopped, tell)
    assert asked == [1] and len(started) == 1 and fence_of(stopped) == ""
    assert stopped.still.held is False and told.data["thawed"] is not memory
    assert stopped.state is State.ROLLED_BACK


@pytest.mark.parametrize("memory", [True, False])
def test_its_disk_is_away_when_that_is_carried_on(stopped: Migration, started: list[str], memory: bool,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """It was thawed, or started, and told; then came a power cut, and its disk comes late: its fence must not stay."""
    monkeypatch.setattr(remains, "require_none", lambda _: None)
    stopped.note("record", memory=memory, ports=[], boot="an earlier one", stopping=False)
    stopped.move(Event.ROLL_BACK, abandoned=True, forced=False, held=False, kept=[])
    pool, disk = stopped.lxcpath / "web", stopped.lxcpath / "disk"
    pool.rename(disk)
    for _ in range(2):
        with pytest.raises(DiskAway, match="/web is missing"):
            give_back.roll_back(stopped, lambda: pytest.fail("it was told"))
        assert str(stopped.state) == "rolling-back"
    disk.rename(pool)
    give_back.roll_back(stopped, lambda: pytest.fail("it was told"))
    assert str(stopped.state) == "rolled-back" and fence_of(stopped) == ""
    assert len(started) == (not memory), "what this has stopped, and fenced, nobody has started at that boot"


def test_what_was_removed_for_good_is_no_disk_that_is_away(stopped: Migration, started: list[str]) -> None:
    """Its snapshots are there, or somebody says so: by the command that the error names."""
    stopped.note("record", stopping=False)
    stopped.move(Event.ROLL_BACK, abandoned=True, forced=False, held=False, kept=[])
    shutil.rmtree(stopped.lxcpath / "web")
    with pytest.raises(DiskAway) as away:
        give_back.roll_back(stopped, lambda: pytest.fail("it was told"))
    assert f"mkdir -p {stopped.lxcpath}/.migrator/web" in away.value.hint
    (stopped.lxcpath / ".migrator" / "web").mkdir(parents=True)
    give_back.roll_back(stopped, lambda: pytest.fail("it was told"))
    assert stopped.state is State.ROLLED_BACK and started == []


def test_a_network_that_cannot_be_heard_keeps_nothing_from_its_start(stopped: Migration, started: list[str],
                                                                     monkeypatch: pytest.MonkeyPatch,
                                                                     capfd: pytest.CaptureFixture[str]) -> None:
    def hear(_: str) -> None:
        raise CommandFailed(command="nft", outcome="exit status 1", output="Operation not supported")

    monkeypatch.setattr(remains, "require_none", lambda _: None)
    monkeypatch.setattr("migrator.host.network.hear", hear)
    stopped.note("record", memory=True, ports=[{"inside": "eth0", "outside": "veth1", "bridge": "br0"}])
    assert thaw_again.thaw_source(stopped) is False
    assert len(started) == 1 and "What silenced the network of web stays" in capfd.readouterr().err


def test_what_its_owner_has_stopped_meanwhile_is_not_started(stopped: Migration,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given back before the other host was asked; who stops it then means that."""
    stopped.note("record", memory=True)
    here = [True]
    monkeypatch.setattr("migrator.copies.remains.first_is_here", lambda _: here[0])
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: here[0] or pytest.fail("it is started"))

    def tell() -> str:
        here[0] = False
        return ""

    give_back.roll_back(stopped, tell)
    assert stopped.state is State.ROLLED_BACK


def test_the_last_copy_makes_no_room(stopped: Migration, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its root file system was removed, and its configuration is left, with the fence."""
    snapshot(stopped, 1, SENT)
    two = snapshot(stopped, 2, UUID)
    stopped.note("record", memory=True, held=True, ports=[])
    shutil.rmtree(stopped.lxcpath / "web" / "rootfs")
    monkeypatch.setattr(remains, "require_none", lambda _: None)

    def start(*_: Any, **__: Any) -> int:
        raise StartFailed(name="web", reason="no root file system", log="x")

    monkeypatch.setattr(no_memory, "start", start)
    with pytest.raises(StartFailed):
        give_back.roll_back(stopped, lambda: SENT)
    assert two.is_dir()


@pytest.mark.parametrize("full", ["the journal's disk", "the container's disk", "neither"])
def test_a_full_disk_keeps_no_container_stopped_whose_memory_is_gone(
        stopped: Migration, monkeypatch: pytest.MonkeyPatch, full: str, started: list[str]) -> None:
    stopped.note("record", memory=True, held=True)
    monkeypatch.setattr("migrator.copies.remains.require_none", lambda _: None)
    if full == "the journal's disk":
        full_journal(monkeypatch)
    elif full == "the container's disk":
        full_pool(monkeypatch, stopped.lxcpath)
    after_crash.start_from_disk(stopped)
    assert started == ["lxc.uts.name = web; "]
    assert (fence_of(stopped) == stopped.id) == (full == "the container's disk")


def test_where_it_cannot_be_started_nothing_is_said_of_memory(stopped: Migration, started: list[str],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(no_memory, "start", broken)
    with pytest.raises(SourceStillStopped, match="stopped on") as still:
        offer.give_up(stopped, There(), TOO_LATE)  # type: ignore[arg-type]
    assert isinstance(still.value.cause, InternalError | OSError) or "Input/output" in str(still.value)
    assert "memory" not in str(still.value)


@pytest.mark.parametrize("full", ["/var/log", "its own log there", "/run, too"])
def test_it_is_started_where_no_log_can_be_written(stopped: Migration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                   full: str) -> None:
    """lxc-start would end at once; what it says goes to memory, or nowhere."""
    logs = tmp_path / "var" / "migrator"
    file = f"{names.in_path('web', stopped.lxcpath)}-start.log"
    if full == "its own log there":
        (logs / file).mkdir(parents=True)  # which cannot be opened
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", logs)
    if full == "/run, too":
        (tmp_path / "run" / file).mkdir(parents=True)
    ran: list[list[str]] = []
    monkeypatch.setattr(no_memory, "run", lambda argv, **_: ran.append(argv))
    monkeypatch.setattr(Stopped, "init_pid", 77, raising=False)
    monkeypatch.setattr(network, "announce", lambda *_: SimpleNamespace(join=lambda: None))
    with pytest.raises(SourceStartedAgain):
        offer.give_up(stopped, There(), TOO_LATE)  # type: ignore[arg-type]
    (argv,) = ran
    assert argv[0] == "lxc-start"
    expected = "/dev/null" if full == "/run, too" else str(tmp_path / "run" / file)
    assert argv[argv.index("-o") + 1] == expected


def test_the_log_of_a_start_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")
    web, another = (Layout(tmp_path / path, "web", "00000001") for path in ("pool", "second"))
    log_file = no_memory.log_of(web)
    log_file.write_text("of an earlier one")
    assert log_file.parent == tmp_path / "log" and no_memory.log_of(web).read_text()
    assert no_memory.log_of(another, anew=True).read_text() == "" and no_memory.log_of(web).read_text()
    assert no_memory.log_of(web, anew=True).read_text() == ""
    log_file.unlink()
    log_file.symlink_to(tmp_path / "another")
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    assert no_memory.log_of(web) == tmp_path / "run" / log_file.name and not (tmp_path / "another").exists()


@pytest.mark.parametrize("snapshots", [True, False])
def test_fenced_and_not_stopped_with_its_disk_away(stopped: Migration, started: list[str], snapshots: bool) -> None:
    """As after a power cut between the two, where its LXC path is mounted late: it was not removed."""
    shutil.rmtree(stopped.lxcpath / "web")
    stopped.note("stopping", stopping=False)
    if snapshots:
        snapshot(stopped, 1, UUID)
        assert not no_memory.start_again(stopped)
    else:
        with pytest.raises(ContainerNotFound):
            no_memory.start_again(stopped)
        assert stopped.state is State.DUMPING
    assert started == []


def test_one_that_was_never_fenced_and_removed_can_be_given_up(journal: Journal) -> None:
    """Nothing of it is on disk, nor has to be put right there."""
    migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostb",
                               event=Event.SEND, memory=False, rounds=[], destination_lxcpath="/pool")
    assert not no_memory.start_again(migration)
    migration.move(Event.ROLL_BACK, held=False)
    assert not no_memory.start_again(migration)
