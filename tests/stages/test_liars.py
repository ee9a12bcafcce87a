# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that lies: what it names its files, and a configuration that is not the one that was looked at."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

from migrator.config import config_reader
from migrator.errors import UsageError
from migrator.errors.connection import ConsentNeeded, ProtocolError
from migrator.errors.data import NoSpace
from migrator.record import grant
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.remote.answering import CONFIG_FILE, Service, kept_config
from migrator.transfer import room_bounds
from migrator.transfer.frames import CONTROL_MAX
from migrator.transfer.messages import DiskTransfer
from migrator.transfer.rpc import Takeover
from stages.steps import import_round, take_disk
from tests.stages.callers import HOOK, HOSTA, ID, Here, here, peer
from tunnel.identity import private_files
from tunnel.identity.peers import Peers

__all__ = ["here"]

PLAIN = "lxc.uts.name = web\n"


@pytest.fixture(autouse=True)
def _paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "STATE", tmp_path / "state")
    peers = Peers(private_files.STATE / "peers")
    peers.pin("hosta", HOSTA)
    peers.allow("hosta", ["receive"])


def receiving_a_dump(here: Here, granted: grant.Grant) -> None:
    here.begun(granted)
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED):
        migration.move(event)
    migration.move(Event.RECEIVE_DUMP, attempt=1, memory=True)


@pytest.mark.parametrize("name", [CONFIG_FILE, "beside.json", "let-run", "config.restore", "config.start", "criu.conf",
                                  "at-restore", "disk-2", "increment", "pages-1.img"])
@pytest.mark.parametrize("kind", ["disk", "increment"])
def test_a_stream_has_the_name_that_this_host_gives_it(here: Here, kind: str, name: str) -> None:
    granted = peer("hosta", "receive")
    receiving_a_dump(here, granted) if kind == "increment" else here.begun(granted)
    own = {"disk": "disk-1", "increment": "increment"}[kind]
    before = {path.name for path in here.layout.spool.iterdir()}
    if name != own:
        for names in ([name], [own, name]):
            with pytest.raises(ProtocolError, match="does not belong there"):
                here.caller(granted)("transfer", kind=kind, files=[{"name": each, "size": None} for each in names])
    assert {path.name for path in here.layout.spool.iterdir()} == before
    taken = here.caller(granted)("transfer", kind=kind, files=[{"name": own, "size": None}])
    assert isinstance(taken, Takeover)


@pytest.mark.parametrize("name", ["restore.log", "lxc.log", "at-restore.error", "cgroup-limits.wanted",
                                  "cgroup-limits.taken", "device-filter",
                                  "stats-restore", "x"])
def test_beside_the_images_lies_only_what_travels(here: Here, name: str) -> None:
    granted = peer("hosta", "receive")
    receiving_a_dump(here, granted)
    here.stack.callback(here.layout.drop_images)
    with pytest.raises(ProtocolError, match="does not belong there"):
        here.caller(granted)("transfer", kind="images", files=[{"name": name, "size": 1}])
    sent = [{"name": each, "size": 1} for each in (
        "pages-1.img", "tmpfs-dev-42.tar.gz.img", "tty.info", "terminals", "cgroup-owners", "cgroup-limits",
        "cgroup-controllers", "mount-flags")]
    assert isinstance(here.caller(granted)("transfer", kind="images", files=sent), Takeover)


@pytest.mark.parametrize("granted", [peer("hosta", "receive"), grant.ROOT], ids=["a peer", "root"])
@pytest.mark.parametrize("another", ["name", "lxcpath"])
def test_what_has_begun_stays_that_of_its_container(here: Here, granted: grant.Grant, another: str) -> None:
    """Nothing is made in a place where no rollback would look for it, and what is kept of its own stays as it was."""
    granted = dataclasses.replace(granted, lxcpaths=(here.pool, here.second) if granted.restricted else None)
    here.begun(granted)

    def kept() -> tuple[list[Path], str]:
        return sorted((*here.pool.rglob("*"), *here.second.rglob("*"))), (here.layout.spool / CONFIG_FILE).read_text()

    before = kept()
    with pytest.raises(UsageError, match=f"brings web to {here.pool}"):
        here.caller(granted)("begin", config="# x\n", **{another: {"name": "db", "lxcpath": str(here.second)}[another]})
    assert kept() == before
    here.begun(granted)


# --- what is defined ---


def defined(here: Here, granted: grant.Grant, text: str, *, now: str | None = None,
            includes: dict[str, str] | None = None) -> str:
    """The configuration on this host of a container that came with `text`; when it is defined, `now` is kept."""
    here.begun(granted, config=text, source_lxcpath="/usr/share", source_name="lxc")
    if now is not None:
        (here.layout.spool / CONFIG_FILE).write_text(
            json.dumps({"text": now, "includes": includes or {}, "bridges": {}}))
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration
    import_round.define(migration, here.layout)
    return (here.layout.container / "config").read_text()


@pytest.mark.parametrize(("text", "includes"), [
    (HOOK, {}), (PLAIN, {"/x.conf": "lxc.hook.start-host = /x\n"}),
    ("# BEGIN migrator fence# END migrator fence lxc.hook.start-host = /x\n", {}),
])
def test_what_is_defined_is_looked_at_once_more(here: Here, text: str, includes: dict[str, str]) -> None:
    with pytest.raises(ConsentNeeded, match=r"hook\.start-host") as caught:
        defined(here, peer("hosta", "receive"), PLAIN, now=text, includes=includes)
    assert "--accept-hooks" in caught.value.hint
    assert not here.layout.container.exists()


def test_consent_that_is_given_later_holds_from_the_next_begin_on(here: Here) -> None:
    here.begun(grant.of_only("receive"))
    here.begun(grant.of_only("receive,hooks"), config=HOOK)
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration
    import_round.define(migration, here.layout)
    assert "hook.start-host" in (here.layout.container / "config").read_text()


def test_the_root_file_system_is_never_the_hosts(here: Here) -> None:
    text = defined(here, peer("hosta", "receive"), PLAIN)
    found = [value for key, value in config_reader.settings(text) if key == "lxc.rootfs.path"]
    assert found == [str(here.layout.rootfs)]


@pytest.mark.parametrize("granted", [peer("hosta", "receive"), grant.ROOT, grant.of_only("receive,hooks")],
                         ids=["a peer", "root", "a key that is trusted"])
def test_without_consent_a_container_opens_no_device_of_the_host(here: Here, granted: grant.Grant) -> None:
    rules = [value for key, value in config_reader.settings(defined(here, granted, PLAIN)) if "devices" in key]
    assert (rules[:1] == ["a"]) is not granted.hooks
    assert ("c 1:3 rwm" in rules) is not granted.hooks


def test_a_configuration_that_is_too_large(here: Here) -> None:
    here.begun(peer("hosta", "receive"))
    kept: Path = Layout(here.pool, "web", ID).spool / CONFIG_FILE
    with kept.open("r+b") as file:
        file.truncate(8 * CONTROL_MAX + 1)
    with pytest.raises(ValueError, match="larger"):
        kept_config(here.layout)


@pytest.mark.parametrize(("granted", "bound"), [(peer("hosta", "receive"), True), (grant.ROOT, False)])
def test_no_more_of_a_disk_arrives_than_its_sender_announced(here: Here, granted: grant.Grant, bound: bool) -> None:
    """Of root over SSH any may, who may fill what he likes."""
    most = {1 << 30: 1 << 30, 2 << 30: 1 << 30, (2 << 30) + 1: (2 << 30) + 1}  # grown beyond what had been left to it
    for said, believed in most.items():
        here.begun(granted, disk_bytes=said)
        with contextlib.ExitStack() as locks:
            place = take_disk.receive_disk(Service(here.journal, locks, granted), DiskTransfer(id=ID, round=1))
        assert place.bounds == (room_bounds.of_disk(here.pool, believed) if bound else room_bounds.OF_DISK)


def test_what_there_is_no_room_for_is_refused(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a twentieth of the file system left, which is the host's own."""
    monkeypatch.setattr(room_bounds, "SHARE", 1)
    with pytest.raises(NoSpace):
        here.begun(peer("hosta", "receive"))
    assert here.journal.all() == []
    here.begun(grant.ROOT)
