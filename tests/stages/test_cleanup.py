# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator cleanup` removes, and what it leaves: of migrations under way, of strangers, of older versions."""

from __future__ import annotations

import json
import os
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import cli
from migrator.errors.containers import AlreadyMigrating
from migrator.errors.this_host import Busy
from migrator.host import network
from migrator.record import container_lock, image_folders
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.states import Event, Role
from migrator.transfer import received_snapshot
from stages import cleanup
from stages.steps import left_running
from stages.steps.cleaner import Cleaner

ID, OTHER = "0badc0de", "00000001"


class Host:
    """A host with all that it keeps in a folder of the test's."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self.journal = journal
        self.run, self.pool, self.former = folder / "run", folder / "pool", folder / "shm"
        self.silent: dict[str, list[str]] = {}  # tables: the interfaces that are still there

    def begin(self, name: str = "web", id: str = ID, role: Role = Role.DESTINATION) -> Migration:
        """A migration begins: it is recorded, and then has things in all places."""
        event = Event.RECEIVE if role is Role.DESTINATION else Event.SEND
        with locked(name, lxcpath=self.pool):
            made = self.journal.create(id=id, role=role, name=name, lxcpath=self.pool, peer="hosta", event=event,
                                       rounds=[])
            for path in self.things(name, id):
                path.mkdir(parents=True)
            self.silent[id] = []
        return made

    def ended(self, name: str = "web", id: str = ID) -> Migration:
        made = self.begin(name, id)
        made.move(Event.ABANDON)
        made.move(Event.ABANDONED)
        return made

    def things(self, name: str = "web", id: str = ID) -> list[Path]:
        here = Layout(self.pool, name, id)
        return [self.run / id, here.spool, here.snapshot(1), here.work / f"{id}.images"]

    def clean(self, *, dry_run: bool = False) -> list[str]:
        cleaner = Cleaner(dry_run=dry_run)
        cleanup._clean_leftovers(cleaner, self.journal, self.pool)
        return cleaner.removed


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for module in (image_folders, cleanup):
        monkeypatch.setattr(module, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(image_folders, "FORMER_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "run" / "lock")
    monkeypatch.setattr("migrator.host.btrfs.is_subvolume", lambda path: path.name.endswith(".1") and path.is_dir())
    monkeypatch.setattr("migrator.host.btrfs.delete", lambda path, **_: path.is_dir() and path.rmdir())

    class Info:
        def __init__(self, _path: Path) -> None:
            self.generation = 1

    monkeypatch.setattr("migrator.host.btrfs.info", Info)
    monkeypatch.setattr("migrator.host.lxc.container_processes", lambda _: [])
    with Journal(tmp_path / "journal.db") as journal:
        made = Host(journal, tmp_path)
        for name, does in {"silenced": lambda: list(made.silent), "still_silenced": lambda id_: made.silent[id_],
                           "hear": made.silent.pop}.items():
            monkeypatch.setattr(network, name, does)
        yield made


def test_what_has_ended_goes_and_what_is_under_way_stays(host: Host) -> None:
    host.ended()
    host.begin("shop", OTHER)
    gone = {*map(str, host.things()), f"nft table netdev migrator-{ID}"}
    assert set(host.clean(dry_run=True)) == gone
    assert all(path.is_dir() for path in host.things())
    assert set(host.clean()) == gone
    assert not any(path.exists() for path in host.things())
    assert all(path.is_dir() for path in host.things("shop", OTHER))
    assert host.silent == {OTHER: []}
    assert host.clean() == []


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("at", range(12))
def test_what_begins_meanwhile_loses_nothing(host: Host, at: int, role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any look into the journal, as soon as nobody has its container locked."""
    host.ended("web", OTHER)
    looks, begun = 0, False
    honest = host.journal.rows

    def rows(*given: Any) -> Any:
        nonlocal looks, begun
        looks += 1
        if looks > at and not begun:
            begun = True
            try:
                host.begin(role=role)
            except Busy:
                begun = False
        return honest(*given)

    monkeypatch.setattr(host.journal, "rows", rows)
    host.clean()
    assert not any(path.exists() for path in host.things("web", OTHER))
    if begun:
        assert all(path.is_dir() for path in host.things())
        assert ID in host.silent
    assert begun or looks <= at or at > 4


@pytest.mark.parametrize("known", [True, False])
def test_what_tells_of_one_that_lives_stays(host: Host, monkeypatch: pytest.MonkeyPatch, known: bool,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """The journal was lost: by those snapshots alone the source is told that it runs here. Known is only that it was
    asked, and has never heard of it.
    """
    lives = host.ended()
    host.ended("other", OTHER)
    if not known:
        host.journal.forget(lives)
    monkeypatch.setattr(left_running, "in_own", lambda here: [4711] if here.id == ID else [])
    host.clean()
    here = Layout(host.pool, "web", ID)
    assert here.snapshot(1).is_dir() and here.spool.is_dir()
    assert f"What migration {ID} has brought stays" in capsys.readouterr().err
    other = Layout(host.pool, "other", OTHER)
    assert not other.snapshot(1).exists() and not other.spool.exists()
    monkeypatch.setattr(left_running, "in_own", lambda _: [])
    host.clean()
    assert not here.snapshot(1).exists() and not here.spool.exists()


def test_a_container_that_is_worked_on_keeps_nobody_waiting(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    for name, id in (("web", ID), ("shop", OTHER)):
        host.ended(name, id)
    with locked("web", lxcpath=host.pool):
        host.clean()
    assert all(path.is_dir() for path in host.things())
    assert not any(path.exists() for path in host.things("shop", OTHER))
    assert "The leftovers of web stay" in capsys.readouterr().err
    assert set(host.silent) == {ID}


def test_a_silence_of_a_migration_that_nobody_knows(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The journal may have been lost while a copy was frozen: what runs elsewhere has its address."""
    host.silent |= {ID: ["veth1"], OTHER: []}
    assert host.clean() == [f"nft table netdev migrator-{OTHER}"]
    assert set(host.silent) == {ID}
    assert f"delete table netdev migrator-{ID}" in capsys.readouterr().err


def test_with_a_name_its_silence_goes_too(host: Host) -> None:
    host.ended()
    host.begin("shop", OTHER)
    cleaner = Cleaner(dry_run=False)
    cleanup.clean_container(cleaner, host.journal, "web", host.pool, keep_copy=True)
    assert set(host.silent) == {OTHER}
    assert f"nft table netdev migrator-{ID}" in cleaner.removed


@pytest.mark.parametrize("linked", ["", "the LXC path", "the record"])
def test_a_last_copy_goes_with_its_containers_name_alone(host: Host, linked: str) -> None:
    """A rollback has found the container gone; its record stays as well, as without it nothing tells what it is."""
    pool, alias = host.pool, host.pool.with_name("alias")
    pool.mkdir()
    alias.symlink_to(pool)
    host.pool = alias if linked == "the record" else pool
    made = host.begin(role=Role.SOURCE)
    host.pool = alias if linked == "the LXC path" else pool
    made.move(Event.ROLL_BACK, abandoned=True)
    made.move(Event.ROLLED_BACK, last_copy=[f"{ID}.1"])
    (copy,) = Layout(host.pool, "web", ID).snapshots()
    cleaner = Cleaner(dry_run=False)
    pool.rename(pool.with_name("unmounted"))
    pool.mkdir()
    cleanup.forget(host.journal)  # its disk is away
    pool.rmdir()
    pool.with_name("unmounted").rename(pool)
    cleanup._clean_leftovers(cleaner, host.journal, host.pool)
    cleanup.forget(host.journal)
    assert copy.is_dir() and cleaner.kept == [str(copy)] and str(copy) not in cleaner.removed
    pool.rename(pool.with_name("unmounted"))
    pool.mkdir()
    cleanup.clean_container(cleaner, host.journal, "web", host.pool, keep_copy=True)  # it is away again
    assert made.copy.last_copy
    shutil.rmtree(pool)
    pool.with_name("unmounted").rename(pool)
    cleanup.clean_container(cleaner, host.journal, "web", host.pool, keep_copy=True)
    cleanup.forget(host.journal)
    assert not copy.exists()
    assert host.journal.all() == []


@pytest.mark.parametrize("words", [("web",), ()])
def test_another_container_of_that_name_is_not_forgotten(host: Host, monkeypatch: pytest.MonkeyPatch,
                                                         words: tuple[str, ...]) -> None:
    """In another LXC path, that is; without one all are meant."""
    monkeypatch.setattr(cleanup, "DEFAULT_PATH", host.journal.path)
    monkeypatch.setattr("stages.steps.arguments.require_root", lambda _: None)
    usual, given = host.pool, host.pool.with_name("given")
    for path in (usual, given):
        path.mkdir(exist_ok=True)
    monkeypatch.setattr("migrator.host.lxc.default_lxcpath", lambda: usual)
    host.ended()
    host.pool = given
    host.ended(id=OTHER)
    cli.parse(["cleanup", *words, "--forget", "-P", f"{usual}/"]).run()
    assert [each.id for each in host.journal.all()] == [OTHER]
    cli.parse(["cleanup", "--forget"]).run()
    assert host.journal.all() == []


@pytest.mark.parametrize("linked", ["the LXC path", "the record"])
def test_another_spelling_of_the_path_hides_nothing(host: Host, linked: str) -> None:
    """LXC's own path is often a link to where there is room."""
    alias = host.pool.with_name("alias")
    alias.symlink_to(host.pool)
    host.pool.mkdir(exist_ok=True)
    given = host.pool
    if linked == "the LXC path":
        given = alias
    else:
        host.pool = alias
    host.begin()
    with pytest.raises(AlreadyMigrating):
        cleanup.clean_container(Cleaner(dry_run=False), host.journal, "web", given, keep_copy=False)
    assert all(path.is_dir() for path in host.things())
    found = host.journal.latest("web", given)
    assert found and found.id == ID


# --- what older versions have left --------------------------------------------------------------------------


def former(host: Host, id: str = ID) -> list[Path]:
    """Where they kept it."""
    folder = Layout(host.pool, "web", id).folder
    return [folder / f"{id}.spool", folder / f"{id}.images", host.former / id]


@pytest.mark.parametrize("known", [True, False])
def test_the_places_of_older_versions(host: Host, known: bool) -> None:
    for path in former(host):
        path.mkdir(parents=True)
    if known:
        host.ended()
    host.clean()
    assert not any(path.exists() for path in former(host))


def test_of_a_migration_under_way_they_stay(host: Host) -> None:
    host.begin()
    for path in former(host):
        path.mkdir(parents=True)
    host.clean()
    assert all(path.is_dir() for path in former(host))


def test_what_they_have_put_aside_stays_until_it_is_asked_for(host: Host) -> None:
    host.ended()
    old = Layout(host.pool, "web", ID).former_old
    old.mkdir()
    (old / "config").write_text("lxc.uts.name = web\n")
    host.clean()
    assert (old / "config").is_file()
    for keep_copy in (True, False):
        cleaner = Cleaner(dry_run=False)
        cleanup.clean_container(cleaner, host.journal, "web", host.pool, keep_copy=keep_copy)
        assert old.exists() is keep_copy and (cleaner.kept == [str(old)]) is keep_copy


@pytest.mark.parametrize("way", ["link", "writable"])
def test_what_anybody_could_have_made_in_memory_is_left_alone(host: Host, way: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / ID).mkdir(parents=True)
    if way == "link":
        host.former.symlink_to(victim)
    else:
        victim.rename(host.former)
        host.former.chmod(0o777)
    host.clean()
    assert (host.former / ID).is_dir()


def test_a_note_that_a_stream_has_made_is_none(host: Host) -> None:
    """Among the snapshots it could say that all of them came with a stream."""
    host.begin()
    here = Layout(host.pool, "web", "deadbeef")
    spool = here.folder / here.spool.name
    spool.mkdir()
    (spool / "beside.json").write_text(json.dumps({"before": [], "target": ""}))
    host.clean()
    assert not spool.exists()
    assert all(path.is_dir() for path in host.things())


def test_it_says_which_container_it_works_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one of that name, in another LXC path, is not taken for the one that is worked on."""
    host.ended()
    held: list[str] = []

    def delete(*_: object) -> None:
        found = container_lock.of("web", host.pool, host.run / "lock")
        assert found
        held.append(found.lxcpath)

    monkeypatch.setattr("migrator.host.btrfs.delete", delete)
    monkeypatch.setattr(cleanup, "remove_images", delete)
    host.clean()
    monkeypatch.setattr(cleanup, "DEFAULT_PATH", host.journal.path)
    monkeypatch.setattr("stages.steps.arguments.require_root", lambda _: None)
    cli.parse(["cleanup", "web", "-P", str(host.pool)]).run()
    assert held == [str(host.pool)] * 3


def drops(host: Host) -> list[Callable[[], None]]:
    here = Layout(host.pool, "web", ID)
    return [here.drop_images, here.drop_spool]


def test_the_end_of_a_migration_takes_them_along(host: Host) -> None:
    for id in (ID, OTHER):
        for path in former(host, id):
            path.mkdir(parents=True)
    for drop in drops(host):
        drop()
    assert not any(path.exists() for path in former(host))
    assert all(path.exists() for path in former(host, OTHER))
    assert [str(path) for path in Layout(host.pool, "web", ID).dumped_into()] == [
        f"{host.run}/{ID}", f"{host.pool}/.migrator/web+/{ID}.images", *map(os.fspath, former(host)[:0:-1])]


def brought(host: Host, id: str, *names: str) -> list[Path]:
    """A receive of that migration was killed a while ago; what is called so has come there since."""
    here = Layout(host.pool, "web", id)
    here.make_folder()
    here.spool.mkdir(exist_ok=True)
    (here.spool / "beside.json").write_text(json.dumps({"before": {}, "target": f"{id}.1"}))
    found = [here.folder / name for name in names]
    for path in found:
        path.mkdir(exist_ok=True)
    return found


def test_an_old_note_takes_nothing_of_another_migration(host: Host) -> None:
    """One that begins after the journal was lost: the note says that all but what was there before came with a stream.

    Of what no record is about, nobody knows who has made it.
    """
    under_way = host.begin()
    brought(host, "deadbeef", "somebody's")
    host.clean()
    here = Layout(host.pool, "web", ID)
    assert sorted(path.name for path in here.folder.iterdir()) == [f"{ID}.1", "somebody's"]
    assert not (here.work / "deadbeef.spool").exists() and not under_way.ended


def test_what_a_stream_has_brought_goes_with_its_migration(host: Host) -> None:
    """Also where another one has begun since, which keeps its own."""
    host.ended("web", OTHER)
    host.begin()
    came, strange = brought(host, OTHER, "0badf00d.1", "strange")
    host.clean()
    assert not came.exists() and not strange.exists()
    assert all(path.is_dir() for path in host.things())


def test_a_record_of_another_lxc_path_is_left_to_who_has_that_container(host: Host) -> None:
    """It is not locked for what is done in this one; its snapshots may lie on a disk that is not mounted now."""
    for id_, folder in ((ID, host.pool), (OTHER, host.pool.with_name("second"))):
        made = host.journal.create(id=id_, role=Role.DESTINATION, name="web", lxcpath=folder, peer="hosta",
                                   event=Event.ABANDON, kept=[f"{id_}.1"])
        made.move(Event.ABANDONED)
    host.clean()
    assert [each.copy.kept for each in host.journal.all("web")] == [[], [f"{OTHER}.1"]]


# --- what a stream had renamed when its receive was broken off ------------------------------------------------


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subvolumes have uuids, by which they are known under any name."""
    monkeypatch.setattr("migrator.host.btrfs.info", lambda path: types.SimpleNamespace(
        generation=1, uuid=f"uuid-{path.stat().st_ino}"))


def renamed(host: Host, id: str, *names: tuple[str, str]) -> None:
    """The stream of that migration has renamed snapshots, and nobody has given them their names back."""
    here = Layout(host.pool, "web", id)
    here.make_folder()
    here.spool.mkdir(exist_ok=True)
    before = {path.name: f"uuid-{path.stat().st_ino}" for path in here.folder.iterdir()}
    (here.spool / received_snapshot.NOTE).unlink(missing_ok=True)
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": before, "target": f"{id}.2"}))
    for old, new in names:
        (here.folder / old).rename(here.folder / new)


def marked(host: Host, name: str) -> Path:
    """A snapshot with something in it, which it is known by."""
    path = Layout(host.pool, "web", ID).folder / name
    path.mkdir(exist_ok=True)
    (path / "inside").mkdir()
    return path


@pytest.mark.parametrize("by", ["ended", "under way", "unknown"])
def test_what_a_stream_has_renamed_is_nobodys_leftover(host: Host, marks: None, by: str) -> None:
    """It would have the name of a migration that nobody knows, and go; of whom the stream was tells no name."""
    host.begin()
    if by == "ended":
        host.ended("web", OTHER)
    renamed(host, ID if by == "under way" else OTHER, (f"{ID}.1", "deadbeef.1"))
    host.clean()
    assert (Layout(host.pool, "web", ID).folder / f"{ID}.1").is_dir()


def test_with_a_name_nothing_goes_that_a_stream_has_renamed(host: Host, marks: None) -> None:
    host.ended()
    somebodys = marked(host, "somebodys.1")
    renamed(host, ID, (somebodys.name, "deadbeef.1"))
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        cleanup.clean_container(cleaner, host.journal, "web", host.pool, keep_copy=False)
        assert somebodys.exists() is not dry_run, "a dry run changes nothing"
    assert (somebodys / "inside").is_dir() and str(somebodys.with_name("deadbeef.1")) not in cleaner.removed


def test_a_dry_run_says_that_names_may_be_wrong(host: Host, marks: None, capsys: pytest.CaptureFixture[str]) -> None:
    host.ended()
    for renames in ((), ((f"{ID}.1", "deadbeef.1"),)):
        assert "was interrupted" not in capsys.readouterr().err
        renamed(host, ID, *renames)
        host.clean(dry_run=True)
        assert "was interrupted" in capsys.readouterr().err
    assert (Layout(host.pool, "web", ID).folder / "deadbeef.1").is_dir()


@pytest.mark.parametrize("first", [ID, OTHER])
def test_what_two_streams_have_renamed(host: Host, marks: None, first: str) -> None:
    """The last one is undone first."""
    second = OTHER if first == ID else ID
    for id_ in (first, second):
        host.ended("web", id_)
    somebodys = marked(host, "somebodys.1")
    renamed(host, first, (somebodys.name, "deadbeef.1"))
    renamed(host, second, ("deadbeef.1", "0badf00d.1"))
    host.clean()
    assert (somebodys / "inside").is_dir() and [*somebodys.parent.iterdir()] == [somebodys]
