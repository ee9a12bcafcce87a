# SPDX-License-Identifier: GPL-2.0-or-later
"""It has moved, and does not run on its destination: who finishes the move on its source is told so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.copies import bases, origins
from migrator.copies.origins import Whose
from migrator.errors.memory import StartFailed
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.transfer.messages import Finish, Finished
from migrator.transfer.rpc import Connection
from stages.steps import drive_result, drive_stages, end_copy, finish_here, settling
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer
from tests.migrator.wire import by_op
from tests.stages.journals import journal, offered
from tests.stages.restored_and_stopped import here, lxc_says
from tests.stages.restoring import ID, acts, restoring

__all__ = ["acts", "here", "journal", "restoring"]  # fixtures
START = "It is stopped; start it with: lxc-start -n web -P"


def asked(migration: Migration) -> Finished:
    """By its source, which has ended its copy."""
    service: Any = SimpleNamespace(migration=lambda _: migration)
    return finish_here.finish(service, Finish(id=ID))


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: None)
    monkeypatch.setattr(origins, "rootfs_uuid", lambda _: "")


def test_the_destination_says_so(here: Migration) -> None:
    """Since a reboot, or by its own end; and to who has not heard the first answer, too."""
    said = f"{START} {here.lxcpath}"
    assert asked(here) == Finished(state=State.FINISHED, stopped=said)
    assert asked(here) == Finished(state=State.FINISHED, stopped=said)


def test_why_it_could_not_be_started_there(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after the restore, and rebooted: it stands fenced, and is started now that the source has ended."""
    def start(*_: object) -> None:
        raise StartFailed(name="web", reason="br0 does not exist", log="/var/log/web.log")

    monkeypatch.setattr(origins, "whose", lambda _: Whose.OURS)
    monkeypatch.setattr(settling, "go_on", start)
    assert asked(here).stopped == f"web could not be started: br0 does not exist. {START} {here.lxcpath}"


@pytest.mark.parametrize("how", ["runs", "lives on", "has moved on", "has given way"])
def test_of_what_is_not_to_be_started_nothing_is_said(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                                      how: str) -> None:
    if how == "runs":
        lxc_says(monkeypatch, "RUNNING")
    elif how == "lives on":  # LXC's monitor was killed
        monkeypatch.setattr(settling, "lives", lambda *_: True)
    elif how == "has moved on":
        here.move(Event.FINISHED)
        monkeypatch.setattr(here.journal, "latest", lambda *_: SimpleNamespace(id="00000002", role=here.role))
    else:
        here.move(Event.FINISHED, given_way=True)
    assert asked(here).stopped == ""


@pytest.mark.parametrize("stage", ["finish", "migrate"])
@pytest.mark.parametrize("answer", [{"stopped": "It is stopped."}, {"stopped": ""}, {}])
def test_the_source_passes_it_on(journal: Journal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                 stage: str, answer: dict[str, str]) -> None:
    """As the other host's words. Older versions say nothing."""
    monkeypatch.setattr(end_copy, "stop_and_fence", lambda _: None)
    monkeypatch.setattr(bases, "prune", lambda _: None)
    migration = offered(journal)
    there = cast("Connection", SimpleNamespace(
        peer_host="hostb", call=by_op(lambda *_, **__: {"state": State.RESTORED, "ticket": ""}),
        call_within=by_op(lambda _, op, **__: answer if op == "finish" else {"state": State.RESTORED, "ticket": ""})))
    if stage == "finish":
        done = end_copy.carry_out(migration, there)
    else:
        container: Any = SimpleNamespace(config_file=migration.lxcpath / "config")
        request = MoveRequest(NamedContainer("web"), "root@hostb")
        move = Move(stage, request, MoveOptions(), journal, container, migration)
        drive_stages.finish(move, there)
        done = drive_result.result(move)
    assert str(migration.state) == "finished" and done.text.startswith("web has moved to hostb")
    stopped = answer.get("stopped", "")
    assert done.data["stopped_there"] == stopped
    told = " ".join(capfd.readouterr().err.split())
    assert ("web has moved to hostb, but does not run there. hostb says: It is stopped." in told) is bool(stopped)
