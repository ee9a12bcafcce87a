# SPDX-License-Identifier: GPL-2.0-or-later
"""Consent was taken back: an offer that had come before a crash, and what a version before this one has defined."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.errors.connection import ConsentNeeded
from migrator.errors.containers import ContainerExists, ContainerNotFound
from migrator.errors.memory import DumpRefused
from migrator.errors.outcomes import SourceStillFrozen
from migrator.errors.ownership import ForceRefused
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.grant import Grant
from migrator.record.journal import Migration
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer import messages
from migrator.transfer.messages import Restored
from stages.steps import consented, force, import_round, restore_here, restore_over
from tests.stages.callers import HOOK, ID, Here, here, peer  # noqa: F401 -- a fixture
from tests.stages.consents import CALLERS, WITH, WITHOUT, _no_disk, arriving, dumped, imported, key, peers  # noqa: F401 -- fixtures
from tunnel.identity.peers import Peers


def of_before(migration: Migration) -> Migration:
    """As a version has left it that did not record what reaches out."""
    with migration.journal.transaction() as db:
        db.execute("UPDATE migrations SET detail = json_remove(detail, '$.reaching')")
    migration.refresh()
    assert migration.consent.reaching is None
    return migration


@pytest.mark.parametrize("config", [HOOK, "lxc.include = /nowhere/mine.conf\n"], ids=["a hook", "a file"])
def test_what_an_older_version_has_defined_is_looked_at(here: Here, peers: Peers, config: str) -> None:
    here.begun(peer("hosta", *WITH), config=config, includes={"/nowhere/mine.conf": "lxc.tty.max = 1\n"})
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    import_round.import_round(arriving(here), here.layout)
    of_before(arriving(here))
    peers.allow("hosta", WITHOUT)
    with pytest.raises(ConsentNeeded, match=r"start-host|mine\.conf"):
        here.caller(peer("hosta", *WITHOUT))("dump-begin")
    peers.allow("hosta", WITH)
    assert here.caller(peer("hosta", *WITH))("dump-begin")["state"] == State.RECEIVING_DUMP
    dumped(here)
    peers.allow("hosta", WITHOUT)
    with pytest.raises(DumpRefused, match=r"start-host|mine\.conf"):
        here.caller(peer("hosta", *WITHOUT))("own")


@CALLERS
def test_what_an_older_version_has_defined_without_consent_goes_on(here: Here, caller: Callable[..., Grant],
                                                                   peers: Peers) -> None:
    peers.allow("hosta", WITHOUT)
    ask = here.begun(caller(*WITHOUT))
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    ask("import")
    of_before(arriving(here))
    ask("dump-begin")
    dumped(here)
    assert ask("own").reply == Restored(state=State.OWNED)


@pytest.mark.parametrize("by", ["", "00000001"])
def test_what_stands_in_the_place_of_what_an_older_version_has_defined(here: Here, peers: Peers, by: str) -> None:
    """Somebody has removed it, or has put another container there: that one is not looked at."""
    migration = of_before(imported(here, peer("hosta", *WITH)))
    peers.allow("hosta", WITHOUT)
    shutil.rmtree(here.layout.container)
    if by:
        here.layout.container.mkdir()
        container_config.fence(here.layout.container, HOOK, by, "it has moved")
    with pytest.raises(ContainerExists if by else ContainerNotFound):
        consented.require(migration)


def taken_here(here: Here, granted: Grant, over: bool) -> None:
    """restore-dump, as it is typed here, or as the source asks for it."""
    if over:
        asked = messages.Restore(id=ID, limit=1.0)
        with contextlib.ExitStack() as stack:
            restore_over.restore_for_source(Service(here.journal, stack, granted), asked,
                                            lambda: boot_clock.now() + 100)
    else:
        restore_here.carry_out(arriving(here), 1.0, boot_clock.now() + 100)


@pytest.mark.parametrize(("caller", "over"), [
    (lambda *words: peer("hosta", *words), False), (lambda *words: peer("hosta", *words), True), (key, True),
], ids=["typed, a peer's", "a peer asks", "a key asks"])
def test_an_offer_that_had_come_is_not_taken_up(here: Here, caller: Callable[..., Grant], peers: Peers, over: bool,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash kept this host from recording that it takes the token: it does not take it by itself any more, either."""
    monkeypatch.setattr(lxc, "Container", lambda *_: None)
    monkeypatch.setattr(lxc_disk, "require", lambda _: None)
    monkeypatch.setattr(restore_here.Restore, "run", lambda *_, **__: pytest.fail("it is restored"))
    imported(here, caller(*WITH))
    here.caller(caller(*WITH))("dump-begin")
    dumped(here)
    arriving(here).move(Event.DUMP_RECEIVED, image_files=["core-1.img"], dad={})
    peers.allow("hosta", WITHOUT)
    with pytest.raises(ConsentNeeded if over else SourceStillFrozen, match=r"hook\.start-host") as refused:
        taken_here(here, caller(*WITHOUT), over)
    assert arriving(here).state is State.DUMP_RECEIVED
    assert over or "migrator create-dump web" in refused.value.hint
    with pytest.raises(DumpRefused, match=r"hook\.start-host"):
        here.caller(caller(*WITHOUT))("own")
    assert arriving(here).state is State.IMPORTED, "the source thaws it"


def test_an_offer_is_taken_up_once_the_consent_is_given_again(here: Here, peers: Peers,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    imported(here, peer("hosta", *WITH))
    here.caller(peer("hosta", *WITH))("dump-begin")
    dumped(here)
    arriving(here).move(Event.DUMP_RECEIVED, image_files=["core-1.img"], dad={})
    peers.allow("hosta", WITHOUT)
    with pytest.raises(SourceStillFrozen):
        restore_here.take_offered(arriving(here))
    peers.allow("hosta", WITH)
    restore_here.take_offered(arriving(here))
    assert arriving(here).state is State.OWNED


def test_what_is_forced_is_taken_up_without_it(here: Here, peers: Peers, capsys: pytest.CaptureFixture[str]) -> None:
    """The source is lost for good, and so its peer was removed: what is here is the only copy of its memory."""
    imported(here, peer("hosta", *WITH))
    here.caller(peer("hosta", *WITH))("dump-begin")
    dumped(here)
    arriving(here).move(Event.DUMP_RECEIVED, image_files=["core-1.img"], dad={})
    with pytest.raises(ForceRefused) as refused:
        force.let_run(arriving(here), "", lambda: pytest.fail("nobody is to be asked"))
    assert str(refused.value).endswith(force.RISK.strip()), "nothing of the kind where it is still allowed"
    peers.remove("hosta")
    with pytest.raises(SourceStillFrozen):
        restore_here.take_offered(arriving(here))
    with pytest.raises(ForceRefused, match=r"needs consent: .*hook\.start-host"):  # said before the id is typed
        force.let_run(arriving(here), "", lambda: pytest.fail("nobody is to be asked"))
    restore_here.take_offered(arriving(here), forced=True)
    assert arriving(here).state is State.OWNED
    assert "hook.start-host" in capsys.readouterr().err
