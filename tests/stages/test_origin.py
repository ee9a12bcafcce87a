# SPDX-License-Identifier: GPL-2.0-or-later
"""An origin goes with what has arrived, and not with its name: an earlier stay's copy gives way to it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import bases, origins
from migrator.errors.connection import NotAllowed
from migrator.host import btrfs, subvolume_uuids
from migrator.record.journal import KEPT, Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages import cleanup
from stages.steps import finish_here, put_away, send_disk
from stages.steps.options import MoveRequest, NamedContainer
from tests.migrator.layouts import layout_of
from tests.migrator.wire import by_op
from tests.stages.in_its_place import EARLIER, Disk, attempt, disk, found, owned  # noqa: F401 -- fixtures


def origin(migration: Migration) -> str:
    return origins.origin(migration.journal, "web", migration.lxcpath)


@pytest.fixture(autouse=True)
def none_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No subvolumes are inside a root file system, which alone would have it kept."""
    monkeypatch.setattr(btrfs, "nested", lambda _: [])


def in_its_place(comes: Migration, disk: Disk, uuid: str, fence: str) -> Layout:
    """It has arrived where a copy with that fence was."""
    layout = layout_of(comes)
    layout.make_folder()
    layout.spool.mkdir()
    layout.container.mkdir()
    (layout.container / "config").write_text("lxc.uts.name = web\n")
    disk.make(layout.old / "rootfs", uuid)
    container_config.fence(layout.old, "lxc.uts.name = web\n", fence, "it has left")
    return layout


def made_anew(migration: Migration, disk: Disk) -> None:
    """lxc-destroy and lxc-create: another container under the same name."""
    rootfs = layout_of(migration).rootfs
    btrfs.delete(rootfs)
    disk.make(rootfs, "another")


LEFT = (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED)
CAME = (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE,
        Event.RESTORED)


def leaves(migration: Migration, id: str, *events: Event, **detail: object) -> Migration:
    """It begins to move on; `detail` goes with the last of what has become of that."""
    went = migration.journal.create(id=id, role=Role.SOURCE, name="web", lxcpath=migration.lxcpath, peer="hosta",
                                    event=Event.SEND, rounds=[])
    for event in events[:-1]:
        went.move(event)
    for event in events[-1:]:
        went.move(event, **detail)
    return went


@pytest.mark.parametrize("finished", [False, True])
def test_it_goes_with_what_has_arrived(owned: Migration, disk: Disk, finished: bool) -> None:
    owned.note("origin", origin=EARLIER)
    assert origin(owned) == ""
    attempt(owned)
    if finished:
        finish_here.end_here(owned)
    assert origin(owned) == EARLIER
    made_anew(owned, disk)
    assert origin(owned) == ""
    btrfs.delete(layout_of(owned).rootfs)
    assert origin(owned) == ""


def test_it_outlives_the_snapshots(owned: Migration, disk: Disk) -> None:
    """`cleanup` removes them, and so does the next migration."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.end_here(owned)
    finish_here.end_here(owned)
    btrfs.delete(layout_of(owned).snapshot(1))
    assert origin(owned) == EARLIER
    finish_here.end_here(owned)  # asked for once more, when nothing tells it any more
    assert origin(owned) == EARLIER
    made_anew(owned, disk)
    assert origin(owned) == ""


def test_another_container_of_that_name_takes_no_copys_place(owned: Migration, disk: Disk, tmp_path: Path) -> None:
    """It was made on the second host, where the first one's had been destroyed, and comes to the first host."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.end_here(owned)
    made_anew(owned, disk)
    with Journal(tmp_path / "first.db") as journal:
        went = journal.create(id=EARLIER, role=Role.SOURCE, name="web", lxcpath=tmp_path / "first", peer="hostb",
                              event=Event.SEND, rounds=[])
        for event in LEFT:
            went.move(event)
        comes = journal.create(id="00000003", role=Role.DESTINATION, name="web", lxcpath=tmp_path / "first",
                               peer="hostb", event=Event.RECEIVE, rounds=[], origin=origin(owned) or "00000003")
        for event in CAME:
            comes.move(event)
        in_its_place(comes, disk, "only-copy", EARLIER)
        finish_here.end_here(comes)
        assert found(comes, "of only-copy") == [".migrator/web+/00000003.ran.1"]


@pytest.mark.parametrize(("events", "detail", "goes_on"), [
    ((), {}, True),
    (LEFT[:4], {}, True),  # nobody may use it then, but by force
    ((Event.ROLL_BACK, Event.ROLLED_BACK), {"abandoned": False, "forced": False}, True),
    ((*LEFT[:4], Event.ROLL_BACK, Event.ROLLED_BACK), {"abandoned": True, "forced": False}, True),
    ((*LEFT[:4], Event.ROLL_BACK, Event.ROLLED_BACK), {"abandoned": False, "forced": True}, False),
    ((*LEFT[:4], Event.ROLL_BACK, Event.ROLLED_BACK), {"abandoned": True, "forced": True}, True),  # told since
    ((*LEFT[:4], Event.ROLL_BACK, Event.ROLLED_BACK), {"abandoned": True, "forced": True, "forgotten_there": True},
     False),
    (LEFT, {}, False),
])
def test_it_ends_where_the_container_has_left(owned: Migration, disk: Disk, events: tuple[Event, ...],
                                              detail: dict[str, object], goes_on: bool) -> None:
    """Its copy here is used again: other hosts may have a newer one of that origin."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.end_here(owned)
    went = leaves(owned, "00000003", *events, **detail)
    assert origin(owned) == (EARLIER if goes_on else "")
    if went.ended:
        leaves(owned, "00000004", Event.ROLL_BACK, Event.ROLLED_BACK, abandoned=True, forced=False)
        assert origin(owned) == (EARLIER if goes_on else "")


def test_it_ends_where_it_has_given_way(owned: Migration, disk: Disk) -> None:
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.give_way(owned)
    assert origin(owned) == ""


def test_it_outlives_what_had_left_before(owned: Migration, disk: Disk) -> None:
    """There and back, and there and back."""
    with Journal(owned.lxcpath.with_name("order.db")) as journal:
        for number in (1, 3):
            went = journal.create(id=f"{number:08x}", role=Role.SOURCE, name="web", lxcpath=owned.lxcpath, peer="hosta",
                                  event=Event.SEND, rounds=[], origin=EARLIER)
            for event in LEFT:
                went.move(event)
            comes = journal.create(id=f"{number + 1:08x}", role=Role.DESTINATION, name="web", lxcpath=owned.lxcpath,
                                   peer="hosta", event=Event.RECEIVE, rounds=[], origin=EARLIER, rootfs_uuid="its")
            for event in CAME:
                comes.move(event)
            comes.move(Event.FINISHED)
        disk.make(layout_of(owned).rootfs, "its")
        assert origins.origin(journal, "web", owned.lxcpath) == EARLIER


@pytest.mark.parametrize("forced", [False, True])
def test_what_is_forgotten_tells_none(owned: Migration, disk: Disk, forced: bool) -> None:
    """How the container came stays on record where its source may ask for that, and that it has left does not."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.end_here(owned, alone=forced)
    leaves(owned, "00000003", *LEFT)
    for _ in range(2):
        cleanup.forget(owned.journal, "web")
        assert [each.id for each in owned.journal.all()] == [owned.id] * forced
        assert origin(owned) == ""
    assert len([event for event in owned.events() if event.step == "forgotten"]) == forced


def test_a_newer_copy_elsewhere_is_put_aside(owned: Migration, disk: Disk, tmp_path: Path) -> None:
    """It has moved on from the second host to a third one, which is lost: its copy on the first is used again, and
    moves to the second, where its last days are.
    """
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish_here.end_here(owned)
    leaves(owned, "00000003", *LEFT)
    second = tmp_path / "second"
    with Journal(tmp_path / "second.db") as journal:
        went = journal.create(id="00000004", role=Role.SOURCE, name="web", lxcpath=second, peer="hostc",
                              event=Event.SEND, rounds=[], origin=EARLIER, rootfs_uuid="newest")
        for event in LEFT:
            went.move(event)
        comes = journal.create(id="00000005", role=Role.DESTINATION, name="web", lxcpath=second, peer="hosta",
                               event=Event.RECEIVE, rounds=[], origin=origin(owned) or "00000005")
        for event in CAME:
            comes.move(event)
        layout = in_its_place(comes, disk, "newest", went.id)
        disk.make(layout.folder / "00000004.2", "base", "newest")
        finish_here.end_here(comes)
        assert found(comes, "of newest") == [".migrator/web+/00000005.ran.1"]
        assert found(comes, "of base") == [".migrator/web/00000004.2"]


class Hosts:
    """Each is a folder with its journal and its LXC paths, so that one can be put back as it had been."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk, self.number = folder, disk, 0

    def move(self, source: str, target: str, *, pool: str = "pool", to: str = "pool", older: bool = False) -> None:
        """The container moves, to its end; its root file system has the number of the move by which it has come."""
        self.number += 1
        id_, there = f"{self.number:08x}", Layout(self.folder / target / to, "web", f"{self.number:08x}")
        here = Layout(self.folder / source / pool, "web", id_)
        if not here.container.exists():
            here.container.mkdir(parents=True)
            self.disk.make(here.rootfs, "0")
        there.make_folder()
        there.spool.mkdir()
        with Journal(self.folder / source / "journal.db") as journal:
            origin = origins.origin(journal, "web", here.lxcpath) or id_
            moves = origins.moves(origins.brought(journal, "web", here.lxcpath))
            went = journal.create(id=id_, role=Role.SOURCE, name="web", lxcpath=here.lxcpath, peer=target,
                                  event=Event.SEND, rounds=[], origin=origin,
                                  rootfs_uuid=btrfs.info(here.rootfs).uuid)
            for event in LEFT:
                went.move(event)
        container_config.fence(here.container, "lxc.uts.name = web\n", id_, "it has left")
        with Journal(self.folder / target / "journal.db") as journal:
            came = journal.create(id=id_, role=Role.DESTINATION, name="web", lxcpath=there.lxcpath, peer=source,
                                  event=Event.RECEIVE, rounds=[], origin=origin, rootfs_uuid=str(self.number),
                                  **({} if older else {"moves": moves}))
            for event in CAME:
                came.move(event)
            if there.container.exists():
                put_away.keep_old(there)
                there.rootfs.rename(there.old / "rootfs")
            there.container.mkdir(exist_ok=True)
            (there.container / "config").write_text("lxc.uts.name = web\n")
            self.disk.make(there.rootfs, str(self.number))
            finish_here.end_here(came)

    def attempt(self, source: str, target: str) -> None:
        """It begins to move, and that is given up."""
        self.number += 1
        id_ = f"{self.number:08x}"
        for host, role, events in ((source, Role.SOURCE, (Event.SEND, Event.ROLL_BACK, Event.ROLLED_BACK)),
                                   (target, Role.DESTINATION, (Event.RECEIVE, Event.ABANDON, Event.ABANDONED))):
            with Journal(self.folder / host / "journal.db") as journal:
                tried = journal.create(id=id_, role=role, name="web", lxcpath=self.folder / host / "pool", peer="",
                                       event=events[0], rounds=[])
                for event in events[1:]:
                    tried.move(event)

    def save(self, host: str) -> None:
        shutil.copytree(self.folder / host, self.folder / f"{host} as it was")

    def put_back(self, host: str) -> None:
        shutil.rmtree(self.folder / host)
        shutil.copytree(self.folder / f"{host} as it was", self.folder / host)

    def copies(self, host: str) -> dict[str, str]:
        """By which move each has come, and where it lies."""
        return {path.name.removeprefix("of "): str(path.parent.relative_to(self.folder / host))
                for path in (self.folder / host).rglob("of *")}


@pytest.fixture
def hosts(tmp_path: Path, disk: Disk) -> Hosts:
    return Hosts(tmp_path, disk)


def test_there_and_back_leaves_nothing_aside(hosts: Hosts) -> None:
    for _ in range(3):
        hosts.move("a", "b")
        hosts.move("b", "a")
        hosts.move("a", "b")
        hosts.move("b", "c")
        hosts.move("c", "a")
    assert hosts.copies("a") == {"15": "pool/web/rootfs"}
    assert hosts.copies("b") == {"13": "pool/web/rootfs"}
    assert hosts.copies("c") == {"14": "pool/web/rootfs"}


def test_an_attempt_is_no_move(hosts: Hosts) -> None:
    hosts.move("a", "b")
    hosts.attempt("b", "a")
    hosts.move("b", "a")
    hosts.attempt("a", "b")
    hosts.move("a", "b")
    assert hosts.copies("a") == {"3": "pool/web/rootfs"} and hosts.copies("b") == {"5": "pool/web/rootfs"}
    with Journal(hosts.folder / "b" / "journal.db") as journal:
        came = journal.by_id("00000005", Role.DESTINATION)
        assert came and came.begun.moves == ["00000001", "00000003"]


def test_so_it_does_by_turns_in_two_lxc_paths(hosts: Hosts) -> None:
    for pool in ("one", "two") * 3:
        hosts.move("b", "a", to=pool)
        hosts.move("a", "b", pool=pool)
    assert hosts.copies("a") == {"9": "one/web/rootfs", "11": "two/web/rootfs"}
    assert hosts.copies("b") == {"12": "pool/web/rootfs"}


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_newer_one_than_what_comes_is_put_aside(hosts: Hosts, forgotten: bool) -> None:
    """The host that it comes from was put back as it had been, with its journal, when it had come there from a third
    one. It has had it once more since, from where it moves now.
    """
    hosts.move("c", "b")
    hosts.save("b")
    hosts.move("b", "a")
    hosts.move("a", "b")
    hosts.put_back("b")
    if forgotten:
        with Journal(hosts.folder / "a" / "journal.db") as journal:
            came = journal.by_id("00000002", Role.DESTINATION)
            assert came
            journal.forget(came)
    hosts.move("b", "a")
    assert hosts.copies("a") == {"2": "pool/.migrator/web+/00000004.ran.1", "4": "pool/web/rootfs"}


def test_also_where_what_comes_has_moved_on_as_often(hosts: Hosts) -> None:
    hosts.move("c", "b")
    hosts.save("b")
    hosts.move("b", "a")
    hosts.move("a", "b")
    hosts.put_back("b")
    for _ in range(2):
        hosts.move("b", "d")
        hosts.move("d", "b")
    hosts.move("b", "a")
    assert hosts.copies("a") == {"2": "pool/.migrator/web+/00000008.ran.1", "8": "pool/web/rootfs"}


@pytest.mark.parametrize("trips", [2, 12])
def test_also_where_its_first_move_is_not_on_record_any_more(hosts: Hosts, trips: int) -> None:
    hosts.move("a", "b")
    hosts.save("b")
    for _ in range(trips):
        hosts.move("b", "a")
        hosts.move("a", "b")
    hosts.put_back("b")
    with Journal(hosts.folder / "a" / "journal.db") as journal:
        assert (journal.by_id("00000001", Role.SOURCE) is None) is (trips > KEPT // 2)
    newest = str(2 * trips)
    assert hosts.copies("a") == {newest: "pool/web/rootfs"}
    hosts.move("b", "a")
    assert hosts.copies("a").pop(newest) == f"pool/.migrator/web+/{hosts.number:08x}.ran.1"


def test_what_an_older_version_brings_is_believed(hosts: Hosts) -> None:
    """It does not say by which way it comes; and what comes of that later is told from there on."""
    hosts.move("a", "b", older=True)
    hosts.move("b", "a", older=True)
    assert hosts.copies("a") == {"2": "pool/web/rootfs"}
    hosts.save("a")
    hosts.move("a", "b")
    hosts.move("b", "c")
    hosts.put_back("a")
    hosts.move("a", "b")
    assert hosts.copies("b") == {"3": "pool/.migrator/web+/00000005.ran.1", "5": "pool/web/rootfs"}


def test_the_latest_moves_travel_along(owned: Migration) -> None:
    assert origins.moves(None) == []
    owned.note("told", moves=[f"{number:08x}" for number in range(100)])
    assert origins.moves(owned) == [*(f"{number:08x}" for number in range(1, 100)), owned.id]


@pytest.mark.parametrize("moved", [False, True])
def test_the_source_says_by_which_way_it_has_come(owned: Migration, disk: Disk, monkeypatch: pytest.MonkeyPatch,
                                                  moved: bool) -> None:
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: [])
    for name in ("held", "usable"):
        monkeypatch.setattr(bases, name, lambda *_: [])
    owned.note("origin", origin=EARLIER, moves=[EARLIER])
    layout = layout_of(owned)
    if moved:
        attempt(owned)
        finish_here.end_here(owned)
    told: dict[str, Any] = {}

    class There:
        peer_host = "hostb"
        tunnel = None

        @by_op
        def call(self, op: str, **fields: Any) -> dict[str, Any]:
            if op == "lxcpath":
                return {"lxcpath": "/pool"}
            told.update(fields)
            raise NotAllowed(host_name="hostb", peer="hosta", reason="it is only asked")

    request = MoveRequest(NamedContainer("web"), "root@hostb")
    container: Any = SimpleNamespace(name="web", lxcpath=layout.lxcpath, config_file=layout.container / "config",
                                     rootfs=layout.rootfs, mapped_root=0)
    with pytest.raises(NotAllowed):
        send_disk.carry_out(request, owned.journal, None, container, There(), 0)  # type: ignore[arg-type]
    assert (told["origin"], told["moves"]) == ((EARLIER, [EARLIER, owned.id]) if moved else (told["id"], []))
