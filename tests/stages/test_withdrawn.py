# SPDX-License-Identifier: GPL-2.0-or-later
"""Consent to what reaches out of a container is taken back while that is on its way here."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import config_reader, consent, container_config
from migrator.copies import no_memory
from migrator.criu import restore
from migrator.errors.connection import ConsentNeeded
from migrator.errors.containers import ConfigInvalid
from migrator.errors.memory import DumpRefused
from migrator.host import btrfs, cgroup_limits, device_filter, lxc, network
from migrator.record import grant
from migrator.record.grant import Grant
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer.messages import Restored
from stages import serve
from stages.steps import consented, import_round, restore_here, settling
from tests.migrator.device_rules import RULES, TAKEN_BACK
from tests.stages.callers import HOSTC, ID, Here, here, peer  # noqa: F401 -- a fixture
from tests.stages.consents import (  # noqa: F401 -- fixtures
    CALLERS,
    WITH,
    WITHOUT,
    _no_disk,
    arriving,
    begun,
    defined,
    dumped,
    imported,
    key,
    peers,
)
from tunnel.identity.peers import Peers


@CALLERS
def test_it_is_not_defined(here: Here, caller: Callable[..., Grant], peers: Peers) -> None:
    begun(here, caller(*WITH))
    peers.allow("hosta", WITHOUT)
    with pytest.raises(ConsentNeeded, match=r"hook\.start-host"):
        here.caller(caller(*WITHOUT))("import")
    assert not here.layout.container.exists()
    if caller is key:  # typed here: what the line of the key says now is what its last request found
        assert not grant.of_migration(arriving(here)).hooks
    peers.allow("hosta", WITH)
    here.caller(caller(*WITH))("import")
    assert defined(here), "it was given again"


def test_over_a_connection_that_stands(here: Here) -> None:
    begun(here, key(*WITH))
    allowed = [key(*WITH), key(*WITHOUT)]
    with contextlib.ExitStack() as stack:
        ask = serve.handlers(Service(here.journal, stack, allowed[0]), lambda: allowed.pop(0))
        ask["state"]({"id": ID})
        with pytest.raises(ConsentNeeded):
            ask["import"]({"id": ID})


@pytest.mark.parametrize("now", ["without", "nothing", "removed"])
def test_what_is_typed_here_goes_by_what_a_peer_may_now(here: Here, peers: Peers, now: str) -> None:
    migration = begun(here, peer("hosta", *WITH))
    if now == "removed":
        peers.remove("hosta")
    else:
        peers.allow("hosta", {"without": WITHOUT, "nothing": ()}[now])
    with pytest.raises(ConsentNeeded) as caught:
        import_round.import_round(migration, here.layout)
    assert ("migrator rollback web" if now == "removed" else "peer allow hosta receive") in caught.value.hint
    assert not here.layout.container.exists()


def test_another_peer_of_that_name_vouches_for_nobody(here: Here, peers: Peers) -> None:
    migration = begun(here, peer("hosta", *WITH))
    peers.rename("hosta", "attic")
    assert grant.of_migration(migration).hooks
    peers.allow("attic", WITHOUT)
    peers.pin("hosta", HOSTC)
    peers.allow("hosta", WITH)
    assert not grant.of_migration(migration).hooks


def test_a_store_that_cannot_be_read_says_nothing(here: Here, peers: Peers) -> None:
    """Somebody mends it: a container that stands still on its source does not wait for that."""
    migration = begun(here, peer("hosta", *WITH))
    peers.path.write_text("nonsense\n")
    assert grant.of_migration(migration).hooks


# --- what is defined here already ---


@CALLERS
def test_nothing_is_frozen_for_it(here: Here, caller: Callable[..., Grant], peers: Peers) -> None:
    imported(here, caller(*WITH))
    peers.allow("hosta", WITHOUT)
    with pytest.raises(ConsentNeeded, match=r"hook\.start-host"):
        here.caller(caller(*WITHOUT))("dump-begin")
    assert arriving(here).state is State.IMPORTED
    peers.allow("hosta", WITH)
    assert here.caller(caller(*WITH))("dump-begin")["state"] == State.RECEIVING_DUMP


@CALLERS
def test_a_plain_configuration_that_comes_later_hides_nothing(here: Here, caller: Callable[..., Grant],
                                                              peers: Peers) -> None:
    """What counts is what was defined; once the later one is, too, it goes on."""
    imported(here, caller(*WITH))
    peers.allow("hosta", WITHOUT)
    ask = here.caller(caller(*WITHOUT))
    ask("begin")
    with pytest.raises(ConsentNeeded):
        ask("dump-begin")
    arriving(here).move(Event.RECEIVE)
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    ask("import")
    assert not defined(here)
    assert ask("dump-begin")["state"] == State.RECEIVING_DUMP


@CALLERS
def test_it_is_not_taken_over(here: Here, caller: Callable[..., Grant], peers: Peers) -> None:
    """The source is told that it may thaw."""
    imported(here, caller(*WITH))
    here.caller(caller(*WITH))("dump-begin")
    dumped(here)
    peers.allow("hosta", WITHOUT)
    with pytest.raises(DumpRefused, match=r"hook\.start-host"):
        here.caller(caller(*WITHOUT))("own")
    assert arriving(here).state is State.IMPORTED


@CALLERS
def test_what_reaches_out_nowhere_goes_on(here: Here, caller: Callable[..., Grant], peers: Peers) -> None:
    here.begun(caller(*WITH))
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    peers.allow("hosta", WITHOUT)
    ask = here.caller(caller(*WITHOUT))
    ask("import")
    ask("dump-begin")
    dumped(here)
    assert ask("own").reply == Restored(state=State.OWNED)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_restore_goes_by_it_too(here: Here, peers: Peers, trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken over is here to stay, but its cgroup gets nothing at the cost of others any more."""
    migration = imported(here, peer("hosta", *WITH))
    here.caller(peer("hosta", *WITH))("dump-begin")
    dumped(here)
    assert here.caller(peer("hosta", *WITH))("own").reply == Restored(state=State.OWNED)
    peers.allow("hosta", WITH if trusted else WITHOUT)
    found: list[bool] = []
    monkeypatch.setattr(lxc, "Container", lambda *_: None)
    monkeypatch.setattr(restore, "verify", lambda *_: None)
    monkeypatch.setattr(restore, "prepare", lambda *args: found.append(args[-1]))
    monkeypatch.setattr(btrfs, "snapshot", lambda *_, **__: SimpleNamespace(uuid="made"))
    for name in ("receive", "give_back_rootfs", "put_rootfs_aside"):
        monkeypatch.setattr(restore_here, name, lambda *_: SimpleNamespace(path=here.pool, uuid="last"))
    migration.refresh()
    migration.note("increment", increment_uuid="y")
    restore_here.Restore(migration, 3600.0, leave=lambda: 0.0)._apply(here.layout.image_folders()[1])
    assert found == [trusted]


@CALLERS
def test_a_container_that_reaches_out_nowhere_is_confined_now(here: Here, caller: Callable[..., Grant], peers: Peers,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is LXC's ordinary one, without rules for devices, and was defined as it came."""
    here.begun(caller(*WITH), config=f"lxc.uts.name = web\n{TAKEN_BACK}")
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    here.caller(caller(*WITH))("import")
    config = here.layout.container / "config"

    def lacks() -> list[str]:
        return consent.confining(config_reader.read(str(config), config.read_text()).settings)

    assert lacks(), "it comes along as it is"
    peers.allow("hosta", WITHOUT)
    ask = here.caller(caller(*WITHOUT))
    ask("dump-begin")
    dumped(here)
    assert ask("own").reply == Restored(state=State.OWNED)
    container = SimpleNamespace(name="web", config_file=config, folder=config.parent)
    monkeypatch.setattr(lxc, "Container", lambda *_: container)
    monkeypatch.setattr(no_memory, "log_of", lambda *_, **__: Path("/dev/null"))
    monkeypatch.setattr(no_memory, "start", lambda *_, **__: 1)
    monkeypatch.setattr(no_memory, "stay", lambda *_: None)
    monkeypatch.setattr(network, "announce", lambda *_: SimpleNamespace(join=lambda: None))
    stage = restore_here.Restore(arriving(here), 3600.0, leave=lambda: 0.0)
    stage._start()
    assert lacks() == []
    started = stage.plain_config.read_text()
    assert consent.confining(config_reader.read("", started).settings) == []
    assert [each.detail.get("reason") for each in arriving(here).events() if each.step == "start"][-1]


@pytest.mark.parametrize("ours", [True, False])
def test_what_had_stopped_is_confined_before_it_goes_on(here: Here, peers: Peers, monkeypatch: pytest.MonkeyPatch,
                                                        ours: bool) -> None:
    """It was let run with consent; whoever has taken its fence away has its configuration in hand."""
    monkeypatch.setattr("migrator.record.image_folders.RUNTIME", here.pool / "run")
    here.begun(peer("hosta", *WITH), config=f"lxc.uts.name = web\n{TAKEN_BACK}")
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    here.caller(peer("hosta", *WITH))("import")
    config = here.layout.container / "config"
    if not ours:
        container_config.unfence(config.parent, ID)
    peers.allow("hosta", WITHOUT)
    lacked: list[bool] = []

    def start(*_: object, config: Path, **__: object) -> int:
        lacked.append(bool(consent.confining(config_reader.read(str(config), config.read_text()).settings)))
        return 1

    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(name="web", config_file=config))
    monkeypatch.setattr(no_memory, "log_of", lambda *_, **__: Path("/dev/null"))
    monkeypatch.setattr(no_memory, "start", start)
    settling.go_on(arriving(here), math.inf)
    assert lacked == [not ours]
    assert any(each.detail.get("reason") for each in arriving(here).events() if each.step == "start") is ours


def test_what_cannot_be_read_as_a_whole_is_confined_behind_all_that_it_includes(here: Here, peers: Peers) -> None:
    """Somebody has changed what it includes since: LXC would take the rules for devices back further on.

    It is not frozen for that any more. But what has come all the same goes on here, as its source may have ended.
    """
    own = here.pool / "own.conf"
    own.write_text("lxc.tty.max = 1\n")
    here.begun(peer("hosta", *WITH), config=f"lxc.uts.name = web\nlxc.include = {own}\n{RULES}lxc.include = {own}\n")
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    here.caller(peer("hosta", *WITH))("import")
    assert not consented.confine(arriving(here))
    peers.allow("hosta", WITHOUT)
    assert not consented.confine(arriving(here)), "it has rules of its own"
    own.write_text(f"lxc.include = {own}\nlxc.cgroup2.devices.deny =\n")
    peers.allow("hosta", WITH)
    with pytest.raises(ConfigInvalid, match="includes itself"):
        here.caller(peer("hosta", *WITH))("dump-begin")
    peers.allow("hosta", WITHOUT)
    assert consented.confine(arriving(here))
    config = (here.layout.container / "config").read_text()
    behind = config.rpartition("lxc.include")[2]
    assert device_filter.denies(cgroup_limits.configured(config_reader.settings(behind)))
    assert not consented.confine(arriving(here)), "once"


def test_an_end_records_no_consent(here: Here) -> None:
    """It gives back, and needs no room for more."""
    imported(here, key(*WITH))
    here.caller(key(*WITHOUT))("abandon")
    assert "consent" not in [each.step for each in arriving(here).events()]
