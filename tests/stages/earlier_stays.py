# SPDX-License-Identifier: GPL-2.0-or-later
"""Fenced copies that earlier migrations have left, in place or put aside. Folders are subvolumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config
from migrator.host import btrfs, lxc, network
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages import cleanup
from stages.steps import settling
from stages.steps.cleaner import Cleaner

ID, LATER = "0badc0de", "00000002"
CONFIG = "lxc.uts.name = web\n"
ARRIVED = (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
           Event.RESTORE, Event.RESTORED)
LEFT = (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db") as made:
        yield made


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What LXC says of the container, and whether a process is in its root file system; folders are subvolumes."""
    told = SimpleNamespace(state="STOPPED", lives=False)

    def info(path: Path) -> Subvolume:
        return Subvolume(path, uuid=path.name, received_uuid="", read_only=True, generation=int(path.suffix[1:] or 0))

    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path.is_dir() and path.name != "web")
    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "nested", lambda _: [])
    monkeypatch.setattr(btrfs, "delete", lambda path, **_: shutil.rmtree(path, ignore_errors=True))
    monkeypatch.setattr(btrfs, "sync", lambda path: None)
    monkeypatch.setattr(network, "silenced", list)
    monkeypatch.setattr(settling, "stands_fenced", lambda _: False)
    monkeypatch.setattr(lxc, "lives_in", lambda name, rootfs: told.lives)
    monkeypatch.setattr(lxc, "Container", lambda name, lxcpath: SimpleNamespace(
        state=told.state, rootfs=lxcpath / name / "rootfs"))
    return told


def begun(journal: Journal, pool: Path, role: Role, *events: Event, id: str = ID, **detail: object) -> Migration:
    first = Event.RECEIVE if role is Role.DESTINATION else Event.SEND
    made = journal.create(id=id, role=role, name="web", lxcpath=pool, peer="other", event=first, rounds=[], **detail)
    for event in events:
        made.move(event)
    if made.state is State.RESTORED:
        Layout(pool, "web", id).spool.mkdir(parents=True)
    return made


def stands(pool: Path, id: str = ID, message: str = "no") -> Layout:
    """A container with a fence, in whose root file system something was written."""
    here = Layout(pool, "web", id)
    here.make_folder()
    here.rootfs.mkdir(parents=True)
    (here.rootfs / "written").touch()
    container_config.fence(here.container, CONFIG, id, message)
    return here


def clean(journal: Journal, pool: Path, *, dry_run: bool = False) -> list[str]:
    cleaner = Cleaner(dry_run=dry_run)
    cleanup.clean_container(cleaner, journal, "web", pool, keep_copy=False)
    return cleaner.removed


def put_aside(pool: Path, came: Migration) -> Layout:
    """As import-data and restore-dump do it; what was fenced by the first migration."""
    here = Layout(pool, "web", came.id)
    here.make_folder()
    (here.old / "rootfs").mkdir(parents=True)
    (here.old / "rootfs" / "written").touch()
    container_config.fence(here.old, CONFIG, ID, "no")
    return here
