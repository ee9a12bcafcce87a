# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence that is written while an lxc-autostart is under way holds nothing: nobody is offered the container then."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import cast

import pytest

from migrator.config import container_config
from migrator.copies import ending, standing
from migrator.errors.containers import OutOfOrder
from migrator.errors.outcomes import SourceRunsAgain
from migrator.errors.ownership import TwoCopies
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.detail import BeforeStill, Figures
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.transfer.rpc import Connection
from stages.steps import ask_source, ask_state, end_copy, finish_here, resume_destination, settling
from stages.steps.ask_source import Asking
from stages.steps.handover import Handover
from stages.steps.options import StandstillOptions
from stages.steps.standstill import Standstill
from stages.steps.stop import Stop
from tests.migrator.wire import by_op
from tests.stages.booting import AGAIN, PID, Boot, boot  # noqa: F401 -- a fixture
from tests.stages.handovers import Plain, migration, thawed  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.offers import There
from tests.stages.standing import config


@pytest.fixture
def here(migration: Migration) -> Migration:
    """About to be brought to a stand."""
    config(migration).parent.mkdir()
    config(migration).write_text("lxc.start.auto = 1\n")
    return migration


class Begins(Plain):
    """One is begun while it stands still."""

    boot: Boot

    def take(self) -> Figures:
        self.boot.under_way = True
        return super().take()


@pytest.mark.parametrize("text", ["lxc.start.auto = 1\n", "lxc.start.auto = 0\n", ""])
def test_nothing_is_frozen_in_vain(here: Migration, boot: Boot, thawed: list[State], text: str) -> None:
    """Whatever its configuration says by now: that has been read before."""
    config(here).write_text(text)
    boot.under_way = True
    made = Plain(here)
    with pytest.raises(OutOfOrder, match=rf"^create-dump cannot run now: lxc-autostart \(process {PID}\)") as raised:
        made.run()
    assert raised.value.hint == AGAIN and here.state is State.PREPARED
    assert made.there.asked == [] and made.done == [] and thawed == []


def test_one_that_has_begun_before_the_fence_stood_is_seen(here: Migration, boot: Boot, thawed: list[State]) -> None:
    made = Begins(here)
    made.fenced, made.boot = False, boot
    with pytest.raises(SourceRunsAgain, match="lxc-autostart"):
        made.run()
    assert boot.fences == ["", here.id], "once before the freeze, and once with the fence on disk"
    assert thawed == [State.DUMPING] and here.state is State.PREPARED
    assert [op for op, *_ in made.there.asked] == ["dump-begin", "dump-drop"]
    assert config(here).read_text() == "lxc.start.auto = 1\n"


def test_what_is_not_stopped_yet_runs_on(here: Migration, boot: Boot, thawed: list[State],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    class Begun(Stop):
        def record(self) -> BeforeStill:
            boot.under_way = True
            return BeforeStill(init=None, boot="", cgroup="")

    monkeypatch.setattr(ending, "stop", lambda *_: pytest.fail("it is stopped"))
    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = here.name, here.lxcpath
    way = Begun(Standstill(StandstillOptions(), here, container, cast("Connection", There({}))))
    with pytest.raises(SourceRunsAgain, match="lxc-autostart"):
        Handover(way.standstill, way).run()
    assert boot.fences == ["", here.id] and not here.still.stopping and thawed == [State.DUMPING]



def test_a_copy_gives_way_once_that_has_ended(journal: Journal, boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a destination that comes back, where the source was forced to run it again: autostart has read no fence."""
    migration = journal.create(id="feedface", role=Role.DESTINATION, name="web", lxcpath=journal.path.parent,
                               peer="hosta", event=Event.RECEIVE, rounds=[], destination="root@hostb")
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                  Event.RESTORE, Event.RESTORED):
        migration.move(event)
    folder = migration.lxcpath / "web"
    folder.mkdir(exist_ok=True)
    (folder / "config").write_text("lxc.start.auto = 1\n")
    for module, name, said in ((ask_source, "state_of_source", State.ROLLED_BACK), (settling, "has_left", False),
                               (settling, "stands_stopped", False), (settling, "is_at_work", False),
                               (lxc, "Container", SimpleNamespace(state="STOPPED")),
                               (lxc_disk, "is_removed", False), (Layout, "is_own_rootfs", True),
                               (finish_here, "drop_way_back", None)):
        monkeypatch.setattr(module, name, lambda *_, said=said: said)
    args = Asking()
    boot.under_way = True
    for _ in range(2):  # the fence stands at the second time, and was put there while that was under way
        with pytest.raises(OutOfOrder, match=f"process {PID}") as refused:
            resume_destination._complete_restored(args, migration)
        assert "migrator resume web" in refused.value.hint
        assert container_config.fence_of((folder / "config").read_text()) == migration.id
        assert container_config.is_superseded(folder) and migration.state is State.RESTORED
    text = (folder / "config").read_text()  # nor where it has read one without its hook, of which the marks are left
    container_config.fence(folder, text, migration.id, container_config.SUPERSEDED)
    (folder / "config").write_text(re.sub(r"lxc\.hook\.pre-start = .*\n", "", text))
    with pytest.raises(OutOfOrder, match=f"process {PID}"):
        resume_destination._complete_restored(args, migration)
    boot.under_way = False
    monkeypatch.setattr(settling, "is_at_work", lambda _: True)  # and at its end it has started this one
    with pytest.raises(TwoCopies):
        resume_destination._complete_restored(args, migration)
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.DUMPED)  # from its journal before that
    monkeypatch.setattr(ask_source, "_asked", lambda *_, **__: (State.DUMPED, 0.0))  # and it runs there: no word
    monkeypatch.setattr(settling, "is_gone", lambda _: False)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING"))
    with pytest.raises(TwoCopies):
        resume_destination._complete_restored(args, migration)
    assert container_config.fence_of((folder / "config").read_text()) == migration.id, "nor is its fence taken away"
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    monkeypatch.setattr(settling, "is_at_work", lambda _: False)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED"))
    resume_destination._complete_restored(args, migration)
    assert str(migration.state) == "finished" and migration.arrived.given_way


def test_a_finish_looks_last_for_what_was_started(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that has ended meanwhile, past a fence that was taken away."""
    for event in (Event.FREEZE, Event.OFFER, Event.TAKEN):
        here.move(event)
    looks: list[str] = []

    def started(*_: object) -> None:
        looks.append("for what was started")
        raise OutOfOrder(stage="finish", missing="it runs", next="")

    monkeypatch.setattr(standing, "refuse_autostart", lambda *_: looks.append("for an autostart"))
    monkeypatch.setattr(standing, "refuse_end", started)
    monkeypatch.setattr(ask_state, "state", lambda *_: State.RESTORED)
    there = SimpleNamespace(call_within=by_op(lambda *_, **__: {}), peer_host="hostb")
    with pytest.raises(OutOfOrder):
        end_copy.carry_out(here, cast("Connection", there))
    assert looks == ["for an autostart", "for what was started"] and here.state is State.DUMPED
