# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` prints, and what it advises of a container that is on its way, or has moved away."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import to_builtins

from migrator import cli
from migrator.base import log
from migrator.base.log import Level
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import after_crash, remains, standing
from migrator.errors.containers import ContainerNotRunning, MovedAway
from migrator.host import lxc
from migrator.host.mountinfo import Mount
from migrator.preflight import survey
from migrator.preflight.checks import network_checks, place_checks
from migrator.preflight.checks.case import PlanOptions
from migrator.preflight.facts import container_facts, host_facts
from migrator.preflight.facts.host_facts import Other
from migrator.preflight.findings import Finding, Severity, Verdict, verdict
from migrator.record import container_lock, next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import Journal
from migrator.record.states import Event
from stages import check
from stages.steps import examine
from stages.steps.options import MoveRequest, NamedContainer
from tests.migrator.made_up import CONTAINER, DESTINATION, ROOT, SOURCE, change
from tests.stages.journals import dumping, journal, owned  # noqa: F401 -- a fixture

FOUND = [Finding("a", Severity.ERROR, "One.", "Cure it."), Finding("b", Severity.WARNING, "Two.", ""),
         Finding("c", Severity.INFO, "Three.", "")]


@pytest.mark.parametrize(("level", "lines"), [
    (Level.NORMAL, ["error    a: One.", "         -> Cure it.", "warning  b: Two.", "info     c: Three.", "It is so."]),
    (Level.QUIET, ["error    a: One.", "         -> Cure it.", "warning  b: Two."]),
])
def test_quiet_says_errors_and_warnings_alone(monkeypatch: pytest.MonkeyPatch, level: Level, lines: list[str]) -> None:
    monkeypatch.setattr(log, "level", level)
    assert examine.shown(FOUND, "It is so.").splitlines() == lines


def test_quiet_says_nothing_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "level", Level.QUIET)
    assert examine.shown(FOUND[2:], "It is ready.") == ""


def test_without_its_memory_is_no_way_where_a_disk_would_stay_behind() -> None:
    options = PlanOptions()
    for disk, advised in (("", Verdict.READY), ("/dev/vg0/webdata", None)):
        facts = change(CONTAINER, {"mounts": (ROOT, Mount("/srv", "ext4", "unsupported", disk=disk))})
        look = examine.Look(SOURCE, DESTINATION, facts, options, survey.find(SOURCE, DESTINATION, facts, options))
        assert verdict(look.findings) is Verdict.BLOCKED
        assert look.instead([]) is advised
        assert look.instead(["disk-stays-behind"]) in (Verdict.READY, Verdict.WARNINGS)


class There:
    """hostb, where web runs since it was restored there."""

    peer_host = "hostb"
    tunnel = None

    def send_request(self, _: object) -> int:
        return 1

    def answer(self, _: int) -> dict[str, object]:
        facts = change(DESTINATION, {"containers": (Other("web", running=True),), "time": 0.0})
        return {"facts": to_builtins(facts), "fenced_copy": False}


@pytest.fixture
def typed(journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`migrator check web` on this host, where it is in that state."""
    monkeypatch.setattr(examine, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(check, "connected", lambda *_: contextlib.nullcontext(There()))
    monkeypatch.setattr(network_checks, "to_ask", lambda *_: {})
    monkeypatch.setattr(host_facts, "gather", lambda _: SOURCE)
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    monkeypatch.setattr(standing, "started_anew", lambda _: False)
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    monkeypatch.setattr(lxc.Container, "__init__", lambda *_: None)
    monkeypatch.setattr(lxc.Container, "name", "web", raising=False)
    monkeypatch.setattr(lxc.Container, "lxcpath", tmp_path, raising=False)
    monkeypatch.setattr(lxc.Container, "state", "STOPPED")
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def run(state: str, destination: str | None = None) -> Result:
        found = change(CONTAINER, {"state": state, "name": "web", "init_pid": 0 if state == "STOPPED" else 4711})
        monkeypatch.setattr(container_facts, "gather", lambda *_, **__: found)
        container = NamedContainer("web", str(tmp_path))
        return check.run(check.CheckOptions(MoveRequest(container, destination or "")))

    return run


ON_THE_WAY = [Event.OFFER, Event.TAKEN, Event.FINISH]


@pytest.mark.parametrize("destination", [None, "root@hostb"])
@pytest.mark.parametrize(("reached", "next_"), [
    (0, "Next: migrator create-dump web -d root@hostb -- see also: migrator status web"),
    (1, "Next: migrator create-dump web -d root@hostb -- see also: migrator status web"),
    (2, "Next: migrator restore-dump web -P /pool   (on hostb) -- see also: migrator status web"),
    (3, "Next: migrator finish web -- see also: migrator status web"),
])
def test_neither_copy_is_to_be_touched(journal: Journal, typed: Callable[..., Result], destination: str | None,
                                       reached: int, next_: str) -> None:
    """Not thawed here, nor removed on hostb, where it may run."""
    migration = dumping(journal)
    for event in ON_THE_WAY[:reached]:
        migration.move(event)
    said = typed("FROZEN", destination)
    (found,) = said.data["findings"]
    assert (found["code"], found["cure"], said.status) == ("under-way", next_, 30)
    assert "web is being moved to hostb (migration 0badc0de" in found["message"]
    assert ("It is frozen here, with all its memory" in found["message"]) is (reached in (1, 2))


def test_somebody_is_at_work(journal: Journal, typed: Callable[..., Result],
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A large memory is being dumped: it is frozen for that."""
    dumping(journal)
    monkeypatch.setattr(container_lock, "of", lambda *_: Holder(12, 1, "create-dump"))
    assert typed("FROZEN").data["findings"][0]["cure"].startswith("Next: migrator wait web -- ")


def test_nor_is_it_started_where_it_has_come_to(journal: Journal, typed: Callable[..., Result],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Rebooted before its source had finished, which may have been forced to run it again."""
    migration = owned(journal)
    migration.move(Event.RESTORE)
    migration.move(Event.RESTORED)
    monkeypatch.setattr(after_crash, "note", lambda _: "Have that host asked: migrator resume web")
    (found,) = typed("STOPPED").data["findings"]
    assert found["code"] == "under-way" and "here from hosta" in found["message"]
    assert found["message"].endswith("Have that host asked: migrator resume web")


@pytest.mark.parametrize("fenced", [True, False])
def test_what_is_left_of_one_that_has_moved_away(journal: Journal, typed: Callable[..., Result],
                                                 fenced: bool) -> None:
    """What has its name on hostb is that container; not so where somebody has made one here of the copy."""
    migration = dumping(journal)
    folder = migration.lxcpath / "web"
    folder.mkdir()
    (folder / "config").write_text("lxc.uts.name = web\n")
    if fenced:
        container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "no")
    for event in (*ON_THE_WAY, Event.FINISHED):
        migration.move(event)
    codes = {found["code"] for found in typed("STOPPED", "root@hostb").data["findings"]}
    assert (codes == {"moved-away"}) is fenced and ("name-taken" in codes) is not fenced


@pytest.mark.parametrize(("state", "fenced", "raised"), [
    ("STOPPED", True, MovedAway), ("STOPPED", False, ContainerNotRunning), ("FROZEN", True, MovedAway),
])
def test_nobody_is_told_to_start_what_has_moved_away(journal: Journal, monkeypatch: pytest.MonkeyPatch, state: str,
                                                     fenced: bool, raised: type[ContainerNotRunning]) -> None:
    """A move that is typed on the wrong host."""
    monkeypatch.setattr(examine, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(examine, "_is_fenced", lambda _: fenced)
    migration = dumping(journal)
    for event in (*ON_THE_WAY, Event.FINISHED):
        migration.move(event)
    container = SimpleNamespace(name="web", lxcpath=migration.lxcpath, state=state)
    with pytest.raises(ContainerNotRunning) as refused:
        examine.require_running(cast("lxc.Container", container))
    assert type(refused.value) is raised and ("lxc-start" in refused.value.hint) is not fenced
    container.state = "RUNNING"
    examine.require_running(cast("lxc.Container", container))


@pytest.mark.parametrize(("peer", "given", "detail", "cure"), [
    ("root@hostb", False, {}, "To move it back, run on hostb: migrator migrate web -P /pool -d hosta"),
    ("root@hostb", True, {"other_name": "shop", "destination_lxcpath": "/data/my lxc"},
     "To move it back, run on hostb: migrator migrate shop -P '/data/my lxc' -d hosta --new-name web"
     " --destination-lxcpath {here}"),
    ("peer:b", False, {}, "To move it back, run on hostb: migrator migrate web -P /pool -d peer:NAME"
     "   (NAME is what this host is called there: migrator peer list)"),
])
def test_how_it_comes_back(journal: Journal, monkeypatch: pytest.MonkeyPatch, peer: str, given: bool,
                           detail: dict[str, Any], cure: str) -> None:
    """By the name, and to the place, that it has here; the other host may call this one something else."""
    monkeypatch.setattr(examine, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(next_commands, "this_host", lambda: "hosta")
    monkeypatch.setattr(examine, "_is_fenced", lambda _: True)
    migration = dumping(journal)
    migration.peer = peer
    migration.note("given", lxcpath_given=given, **detail)
    for event in (*ON_THE_WAY, Event.FINISHED):
        migration.move(event)
    monkeypatch.setattr(Journal, "latest", lambda *_: migration)
    found = examine.moving("web", migration.lxcpath)
    assert found and found.cure == cure.format(here=migration.lxcpath)
    words = shlex.split(found.cure.partition("migrator ")[2].partition("   (")[0])
    assert cli.make_parser().parse_args(words).command == "migrate"


def test_what_runs_here_is_looked_at(journal: Journal, typed: Callable[..., Result]) -> None:
    """Its disk is being sent; or somebody else has frozen it."""
    dumping(journal).move(Event.THAW)
    assert {found["code"] for found in typed("FROZEN").data["findings"]} == {"container-frozen"}
    assert place_checks.UNDER_WAY.name not in typed("RUNNING").text


@pytest.mark.parametrize(("given", "command"), [
    (None, "migrator migrate web -d root@hostb --no-memory"),
    ("/a b", "migrator migrate web -P '/a b' -d root@hostb --no-memory"),
])
def test_the_other_way_is_this_containers(given: str | None, command: str) -> None:
    """And no other one's that is called so in the usual LXC path: it would be stopped, and moved."""
    assert f": {command} -- " in examine.typed_instead(MoveRequest(NamedContainer("web", given), "root@hostb"))
