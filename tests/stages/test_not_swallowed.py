# SPDX-License-Identifier: GPL-2.0-or-later
"""A first Ctrl-C ends what goes on to the offer, wherever it comes: also where an error would not be worth an end."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.copies import bases, remains
from migrator.errors import Interrupted, MigratorError, convert
from migrator.errors.memory import DumpRefused
from migrator.errors.outcomes import SourceRunsAgain
from migrator.host import lxc
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.remote import ssh, ssh_config
from migrator.remote.destination import ConnectOptions, parse
from stages.steps import drive, drive_plan, drive_stages, give_back, offer, send_disk, thaw_again
from stages.steps.reconnect import Link
from tests.stages.handovers import Plain, migration, thawed  # noqa: F401 -- fixtures
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.key_presses import acts, driven, handlers, press  # noqa: F401 -- fixtures
from tests.stages.offers import There, connection


def pressed(*_: object, **__: object) -> Any:
    press()


class Container:
    """Ctrl-C is pressed while LXC is asked."""

    name, lxcpath = "web", Path("/pool")
    init_pid = property(pressed)
    cgroup = property(pressed)
    is_impersonated = pressed
    _tell = lxc.Container._tell
    tell_frozen = lxc.Container.tell_frozen


def told_frozen(folder: Path) -> None:
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (folder / "cgroup.threads").touch()
    lxc.freeze(cast("lxc.Container", Container()), folder)


@pytest.mark.parametrize("act", [
    lambda _folder, _: remains.init_of(cast("lxc.Container", Container())),
    lambda _folder, _: remains.record(cast("lxc.Container", Container())),
    lambda folder, _: told_frozen(folder),
    lambda _folder, migration: send_disk.settle_bases(migration, []),
], ids=["which start it is", "its cgroup", "LXC is told", "bases are dropped"])
def test_on_the_way_to_the_offer(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 act: Callable[[Path, Migration], object]) -> None:
    monkeypatch.setattr(lxc, "run", pressed)
    monkeypatch.setattr(bases, "settle", pressed)
    with pytest.raises(Interrupted):
        act(tmp_path, dumping(journal))


def test_while_a_connection_is_ended() -> None:
    link = Link(ConnectOptions(), "hostb", 0.0)
    link._stack.callback(pressed)
    with pytest.raises(Interrupted):
        link.close()


def test_while_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh._Connector, "_open_socket", pressed)
    monkeypatch.setattr(ssh_config, "lookup", lambda _: SimpleNamespace(connect_timeout=None, proxy_jump=()))
    with contextlib.ExitStack() as stack, pytest.raises(Interrupted):
        ssh._Connector(stack, False, 1.0, None).connect(parse("root@hostb"))


def lost() -> dict[str, Any]:
    """Somebody else's code has swallowed it."""
    with contextlib.suppress(Interrupted):
        press()
    return {}


def test_what_was_lost_on_the_way_is_not_offered(migration: Migration, thawed: list[State],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    made = Plain(migration)
    monkeypatch.setattr(made, "take", lost)
    with pytest.raises(Interrupted):
        made.run()
    assert thawed == [State.DUMPING] and migration.state is State.PREPARED
    assert not [op for op, *_ in made.there.asked if op == "own"]


def test_nor_is_another_step_taken(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    driver = driven(journal, dumping(journal), monkeypatch, lambda: None)
    driver.move.migration = None
    monkeypatch.setattr(driver._link, "connect", lambda: SimpleNamespace(peer_host="hostb"))
    monkeypatch.setattr(drive_plan, "make", lambda *_: None)

    def prepare(*_: object) -> None:
        taken.append("prepare-data")
        lost()

    monkeypatch.setattr(drive_stages, "prepare_data", prepare)
    with pytest.raises(Interrupted):
        drive.Drive._ahead(driver)
    assert taken == ["prepare-data"]


def test_after_a_refused_offer_it_waits_for_the_thaw(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def thaw(_: Migration) -> bool:
        press()
        done.append("thawed")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    migration = offered(journal)
    with pytest.raises(SourceRunsAgain):
        offer.make(migration, connection(There(DumpRefused(name="web", reason="it is incomplete"))))
    assert done == ["thawed"] and migration.state is State.PREPARED
    with pytest.raises(Interrupted):
        container_lock.check_interrupted()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_rollback_that_is_asking(journal: Journal, acts: list[str], frozen: bool,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is left as it is; what is frozen here, and never was offered, is given back without that answer."""

    def thaw(_: Migration) -> bool:
        acts.append("thawed")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    migration = dumping(journal)
    if not frozen:
        migration.move(Event.THAW)
    with pytest.raises(Interrupted):
        give_back.roll_back(migration, pressed)
    assert acts == (["thawed"] if frozen else [])
    assert migration.state is (State.ROLLING_BACK if frozen else State.PREPARED)


def test_nobody_has_pressed_it_here() -> None:
    """The other host's `serve` was told to end."""
    error = convert.from_json(Interrupted(signal="SIGTERM", number=15).to_json(), "hostb")
    assert isinstance(error, MigratorError) and str(error) == "hostb: Interrupted by SIGTERM."
