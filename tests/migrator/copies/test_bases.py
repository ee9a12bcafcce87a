# SPDX-License-Identifier: GPL-2.0-or-later
"""Which snapshots attempts leave behind, and which go when a newer one is there or room is short."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.copies import bases, make_room
from migrator.errors.data import NoSpace, NotBtrfs
from migrator.host import btrfs, subvolume_uuids
from migrator.host.btrfs import Subvolume
from migrator.record import container_lock, migration_paths
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.states import Event, Role

ORIGIN = "0000c350"


@dataclasses.dataclass
class Pool:
    """A host's LXC path, on which folders stand for subvolumes: `web/0badc0de.1` has the uuid `web/0badc0de.1`."""

    path: Path
    journal: Journal
    free: int = 0  # what is free beside what snapshots take: each as many bytes as its name says after '='
    incomplete: str = ""
    made: dict[str, int] = dataclasses.field(default_factory=dict)  # the generations: the order in which they were made
    of: dict[str, str] = dataclasses.field(default_factory=dict)  # what they are snapshots of

    def info(self, path: Path) -> Subvolume:
        name = f"{path.parent.name}/{path.name}"
        return Subvolume(path, name, "", name != self.incomplete, self.made.get(name, 0), self.of.get(name, ""))

    def snapshot(self, name: str) -> Path:
        path = self.path / migration_paths.FOLDER / name
        path.mkdir(parents=True)
        self.made[name] = max(self.made.values(), default=0) + 1
        return path

    def given_up(self, id: str, *rounds: int, name: str = "web", peer: str = "hostb",
                 caller: str = "ssh", origin: str = ORIGIN) -> Migration:
        migration = self.journal.create(id=id, role=Role.DESTINATION, name=name, lxcpath=self.path, peer=peer,
                                        event=Event.ABANDON, caller=caller, origin=origin,
                                        kept=[f"{id}.{number}" for number in rounds])
        for number in rounds:
            self.snapshot(f"{name}/{id}.{number}")
        migration.move(Event.ABANDONED)
        return migration

    @property
    def left(self) -> set[str]:
        return {f"{path.parent.name}/{path.name}" for path in self.path.glob(f"{migration_paths.FOLDER}/*/*")}


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "run" / "lock")
    with Journal(tmp_path / "journal.db") as journal:
        made = Pool(tmp_path / "pool", journal)
        made.path.mkdir()
        monkeypatch.setattr(btrfs, "info", made.info)
        monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path.is_dir())
        monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
        monkeypatch.setattr(btrfs, "wait_deleted", lambda _: None)
        yield made


def test_the_newest_that_both_have(pool: Pool) -> None:
    here = Layout(pool.path, "web", "0badc0de")
    for name in ("web/00000001.9", "web/0badc0de.1", "web/0badc0de.2", "web/0badc0de.3"):
        pool.snapshot(name)
    everything = ["web/00000001.9", "web/0badc0de.1", "web/0badc0de.2", "web/0badc0de.3"]
    pool.incomplete = "web/0badc0de.3"
    found = bases.common(here, everything)
    assert found and found.path.name == "0badc0de.2", "what is being received is none yet"
    assert bases.held(here) == everything[:3] and bases.held(here, own=True) == everything[1:3]
    found = bases.common(here, ["web/0badc0de.1", "web/00000001.9"])
    assert found and found.path.name == "0badc0de.1"
    assert bases.common(here, ["web/00000001.9"]) is None, "another migration's"


def test_what_was_given_up_and_not_kept_is_back_after_a_power_cut(pool: Pool) -> None:
    """It was never known to be on disk: no round starts from it, on either host."""
    pool.given_up("00000001", 2)
    pool.snapshot("web/00000001.3")
    for id_, event in (("00000002", Event.RECEIVE), ("00000003", Event.SEND)):
        pool.journal.create(id=id_, role=Role.SOURCE if event is Event.SEND else Role.DESTINATION, name="web",
                            lxcpath=pool.path, peer="hostb", event=event, origin=ORIGIN)
        pool.snapshot(f"web/{id_}.1")
    pool.snapshot("web/00000004.1")  # of which nothing is recorded
    here = Layout(pool.path, "web", "00000003")
    its = ["web/00000001.2", "web/00000002.1", "web/00000003.1"]
    assert {base.stream_uuid for base in bases.believed(pool.journal, here)} == {*its, "web/00000004.1"}
    assert set(bases.usable(pool.journal, here, ORIGIN, pool.path / "none")) == set(its)


def test_a_destination_keeps_what_is_on_its_disk(pool: Pool) -> None:
    here = Layout(pool.path, "web", "0badc0de")
    migration = pool.journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=pool.path, peer="hostb",
                                    event=Event.RECEIVE)
    names = [pool.snapshot(f"web/0badc0de.{number}").name for number in (1, 2, 3)]
    everything = [f"web/{name}" for name in names]
    assert bases.on_disk(migration) == set()
    assert bases.common(here, everything, bases.on_disk(migration)) is None
    migration.move(Event.RECEIVED)
    migration.move(Event.IMPORT)
    migration.move(Event.IMPORTED, on_disk_uuid=everything[0])
    with migration.step("rootfs") as done:
        done.on_disk_uuid = everything[1]
    with pytest.raises(OSError), migration.step("rootfs") as done:
        done.on_disk_uuid = everything[2]
        raise OSError
    assert bases.on_disk(migration) == set(everything[:2])
    found = bases.common(here, everything, bases.on_disk(migration))
    assert found and found.path.name == "0badc0de.2"


@pytest.mark.parametrize(("rootfs", "its"), [
    (["now"], {"00000001.1", "0badc0de.1"}),  # what earlier attempts have made of it
    (["here", "web/00000002.1", "of hostb"], {"00000002.1", "0badc0de.1"}),  # it has come upon that
    (["later", "put by", "then"], {"00000003.1", "0badc0de.1"}),  # somebody has gone back to what he had put by
    (["another"], {"0badc0de.1"}),
    ([], {"0badc0de.1"}),  # nothing tells
])
def test_a_round_starts_from_what_is_of_its_own_disk(pool: Pool, monkeypatch: pytest.MonkeyPatch, rootfs: list[str],
                                                     its: set[str]) -> None:
    """Not from what is left of another container that had the name before."""
    parents = {"00000001.1": "now", "00000002.1": "", "00000003.1": "then", "00000004.1": "of a disk that is gone",
               "0badc0de.1": "at the last round"}
    for name in parents:
        pool.snapshot(f"web/{name}")

    def info(path: Path) -> Subvolume:
        if path.name == "rootfs":
            if not rootfs:
                raise NotBtrfs(path=path)
            return Subvolume(path, rootfs[0], "", False, 1)
        return dataclasses.replace(pool.info(path), parent_uuid=parents[path.name])

    def ancestors(_: Path) -> Iterator[str]:
        yield from rootfs[1:]
        raise OSError  # the rest is not known

    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(subvolume_uuids, "ancestors", ancestors)
    here = Layout(pool.path, "web", "0badc0de")
    found = bases.usable(pool.journal, here, "0badc0de", here.rootfs)
    assert set(found) == {f"web/{name}" for name in its}


@pytest.mark.parametrize(("origin", "its"), [("0000c350", {"web/00000001.1"}), ("00000003", set())])
def test_or_of_its_origin(pool: Pool, monkeypatch: pytest.MonkeyPatch, origin: str, its: set[str]) -> None:
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(()))
    pool.given_up("00000001", 1)
    pool.given_up("00000002", 1, origin="00000002")
    pool.snapshot("web/00000004.1")  # of which nothing is recorded
    here = Layout(pool.path, "web", "00000003")
    here.rootfs.mkdir(parents=True)
    assert set(bases.usable(pool.journal, here, origin, here.rootfs)) == its


def test_where_there_is_none_nothing_is_looked_at(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs, "info", lambda _: pytest.fail("it is looked at"))
    assert bases.usable(pool.journal, Layout(pool.path, "web", "00000003"), "00000003", pool.path / "none") == []


def test_one_for_each_container_and_each_other_host(pool: Pool) -> None:
    for id_, name, peer in (("00000001", "web", "hostb"), ("00000002", "web", "hostc"), ("00000003", "db", "hostb")):
        pool.given_up(id_, 1, name=name, peer=peer)
    newest = pool.given_up("00000004", 2)
    bases.supersede(newest)
    assert pool.left == {"web/00000002.1", "db/00000003.1", "web/00000004.2"}
    assert [each.copy.kept for each in pool.journal.all()] == [[], ["00000002.1"], ["00000003.1"], ["00000004.2"]]


def test_what_the_other_host_has_not_goes(pool: Pool) -> None:
    pool.given_up("00000001", 1, 2)
    pool.given_up("00000002", 1, peer="hostc")
    begun = pool.journal.create(id="00000003", role=Role.DESTINATION, name="web", lxcpath=pool.path, peer="hostb",
                                event=Event.RECEIVE, origin=ORIGIN)
    bases.settle(begun, ["web/00000001.2"])
    assert pool.left == {"web/00000001.2", "web/00000002.1"}


@pytest.mark.parametrize(("caller", "left"), [
    ("ssh", set()),  # root
    ("peer:abcd", set()),  # whose name is proved
    ("ssh:backup", {"web/00000001.1", "web/00000002.1"}),  # a limited key, which may say any host name
])
def test_a_limited_key_drops_only_what_it_has_brought(pool: Pool, caller: str, left: set[str]) -> None:
    pool.given_up("00000001", 1)
    pool.given_up("00000002", 1, caller="ssh:another")
    pool.given_up("00000003", 1, caller=caller)
    begun = pool.journal.create(id="00000004", role=Role.DESTINATION, name="web", lxcpath=pool.path, peer="hostb",
                                event=Event.RECEIVE, caller=caller, origin=ORIGIN)
    bases.settle(begun, [])
    assert pool.left == left


@pytest.mark.parametrize("end", [bases.supersede, lambda migration: bases.settle(migration, [])],
                         ids=["it has a newer one", "the other host has it not"])
@pytest.mark.parametrize(("first", "second", "caller", "goes"), [
    ("its disk", "its disk", "ssh", True),  # on the source; it has never arrived, so each attempt has its own origin
    ("", "web/00000001.1", "ssh", True),  # on the destination: received upon it
    ("", "web/00000001.1", "peer:abcd", True),  # who has brought both
    ("another disk", "its disk", "ssh", False), ("", "", "ssh", False),
])
def test_of_another_container_that_had_its_name_none_goes(pool: Pool, end: Callable[[Migration], None], first: str,
                                                          second: str, caller: str, goes: bool) -> None:
    """It may be the last copy of that one, which was destroyed since, between the same two hosts."""
    pool.of = {"web/00000001.1": first, "web/00000002.1": second, "web/00000002.2": "web/00000002.1"}
    pool.given_up("00000001", 1, origin="00000001", caller=caller)
    end(pool.given_up("00000002", 1, 2, origin="00000002", caller=caller))
    assert pool.left == {"web/00000002.1", "web/00000002.2"} | (set() if goes else {"web/00000001.1"})


@pytest.mark.parametrize(("caller", "left"), [
    ("ssh", {"web/00000004.1"}), ("ssh:backup", {"db/00000001.1", "web/00000004.1", "web/00000002.1"}),
])
def test_room_is_made_of_what_the_caller_may_drop(pool: Pool, monkeypatch: pytest.MonkeyPatch, caller: str,
                                                  left: set[str]) -> None:
    """And of nothing that a migration under way may still need."""
    pool.given_up("00000001", 1, name="db")
    pool.given_up("00000002", 1)
    pool.given_up("00000003", 1, name="mail", caller="ssh:backup")
    pool.given_up("00000004", 1)
    monkeypatch.setattr("migrator.host.btrfs.total_bytes", lambda _: 1)

    def check_space(_: Path, needed: int, *, what: str) -> None:
        if 10 + 4 - len(pool.left) < needed:
            raise NoSpace(where=pool.path, free=10, needed=needed, what=what)

    monkeypatch.setattr("migrator.transfer.spool.check_space", check_space)
    here = Layout(pool.path, "web", "00000005")
    make_room.check_space(pool.journal, here, 13 if caller == "ssh" else 11, ["web/00000004.1"], what="the disk",
                          caller=caller)
    assert pool.left == left


def test_what_a_migration_under_way_starts_from_stays(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.given_up("00000001", 1, name="db")
    pool.journal.create(id="00000002", role=Role.SOURCE, name="db", lxcpath=pool.path, peer="hostb",
                        event=Event.SEND, rounds=[{"parent": "00000001.1"}])

    def check_space(*_: object, what: str) -> None:
        raise NoSpace(where=pool.path, free=0, needed=1, what=what)

    monkeypatch.setattr("migrator.host.btrfs.total_bytes", lambda _: 1)
    monkeypatch.setattr("migrator.transfer.spool.check_space", check_space)
    with pytest.raises(NoSpace):
        make_room.check_space(pool.journal, Layout(pool.path, "web", "00000004"), 1, [], what="the disk")
    assert pool.left == {"db/00000001.1"}


def test_nothing_is_dropped_in_vain(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for more than all of them would free gets nothing of them."""
    pool.given_up("00000001", 1, name="db")
    pool.given_up("00000002", 1)
    monkeypatch.setattr("migrator.host.btrfs.total_bytes", lambda _: 10)
    here = Layout(pool.path, "web", "00000004")
    with pytest.raises(NoSpace):
        make_room.check_space(pool.journal, here, 1 << 60, [], what="the disk")
    assert pool.left == {"db/00000001.1", "web/00000002.1"}


@pytest.mark.parametrize(("free", "needed", "left"), [
    (10, 10, {"web/00000001.1", "db/00000002.1", "web/00000003.1"}),
    (10, 11, {"db/00000002.1", "web/00000003.1"}),
    (10, 12, {"web/00000003.1"}),
    (10, 13, None),  # that is more than all of them take: none goes in vain
])
def test_the_oldest_goes_first_where_room_is_short(pool: Pool, monkeypatch: pytest.MonkeyPatch, free: int, needed: int,
                                                   left: set[str] | None) -> None:
    """Each takes one; the one that the next attempt would start from stays."""
    monkeypatch.setattr("migrator.host.btrfs.total_bytes", lambda _: 1)
    pool.given_up("00000001", 1)
    pool.given_up("00000002", 1, name="db")
    pool.given_up("00000003", 1)

    def check_space(_: Path, needed: int, *, what: str) -> None:
        if free + 3 - len(pool.left) < needed:
            raise NoSpace(where=pool.path, free=free, needed=needed, what=what)

    monkeypatch.setattr("migrator.transfer.spool.check_space", check_space)
    here = Layout(pool.path, "web", "00000004")
    if left is None:
        with pytest.raises(NoSpace):
            make_room.check_space(pool.journal, here, needed, ["web/00000003.1"], what="the disk")
        left = {"web/00000001.1", "db/00000002.1", "web/00000003.1"}
    else:
        make_room.check_space(pool.journal, here, needed, ["web/00000003.1"], what="the disk")
    assert pool.left == left


def test_what_somebody_works_on_is_left_alone(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_space(*_: object, what: str) -> None:
        raise NoSpace(where=pool.path, free=0, needed=1, what=what)

    pool.given_up("00000002", 1, name="db")
    monkeypatch.setattr("migrator.transfer.spool.check_space", check_space)
    with locked("db", lxcpath=pool.path), pytest.raises(NoSpace):
        make_room.check_space(pool.journal, Layout(pool.path, "web", "00000004"), 1, [], what="the disk")
    assert pool.left == {"db/00000002.1"}


def test_a_record_is_forgotten_only_without_its_base(pool: Pool) -> None:
    pool.given_up("ffffffff", 1, peer="hostc")
    for number in range(30):
        pool.given_up(f"{number:08x}")
    found = pool.journal.by_id("ffffffff", Role.DESTINATION)
    assert found and bases.note(found)
    bases.drop(found)
    assert pool.left == set() and bases.note(found) == ""
    pool.given_up("00000100")
    assert pool.journal.by_id("ffffffff", Role.DESTINATION) is None
