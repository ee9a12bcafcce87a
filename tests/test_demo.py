# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make demo` says of what it has seen: only what was lost, wrong or left behind makes it fail, never a time."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import demo, figures, floor, hosts, warm
from bench.figures import Figures

TREE = Path(__file__).parents[1]
ROUNDS: floor.Rounds = {"dump_ms": [200.0, 190.0, 260.0], "restore_ms": [180.0, 170.0, 300.0]}

GOOD: Figures = {
    "frozen_ms": 839.4, "floor_ms": 380.0, "ratio": 2.21, "longest_gap_ms": 790.1, "seconds": 8.912,
    "bytes": {"full": 130393016, "increment": 115, "memory": 93742694},
    "stages": [{"name": "check", "seconds": 0.47}, {"name": "finish", "seconds": 0.42}],
    "one_command": {"frozen_ms": 583.5, "floor_ms": 380.0, "ratio": 1.54, "seconds": 1.234, "longest_gap_ms": 601.2,
                    "bytes": {"full": 0, "increment": 115, "memory": 93842694}},
    "nat": {"frozen_ms": 652.6, "floor_ms": 402.0, "ratio": 1.62, "seconds": 3.635,
            "bytes": {"full": 132393016, "increment": 230, "memory": 94380939},
            "path": "direct", "reason": "a cone NAT here, a cone NAT there", "rtt_ms": 0.71, "connect_ms": 2.6,
            "mtu": 1420, "floor": ROUNDS, "left": [],
            "server": {"values_verified": 65535, "values_wrong": 0, "started_anew": False, "problem": None}},
    "whole_system": {
        "frozen_ms": 1064.1, "floor_ms": 940.2, "ratio": 1.13, "longest_gap_ms": 1101.0, "seconds": 6.012,
        "bytes": {"full": 332383823, "increment": 2557, "memory": 48352399},
        "back": {"frozen_ms": 1124.2, "floor_ms": 980.1, "ratio": 1.15, "longest_gap_ms": 1151.0, "seconds": 2.512,
                 "bytes": {"full": 0, "increment": 2557, "memory": 48352399}},
        "clients": {name: {"answers": 201, "longest_gap_ms": 1151.0, "problem": None}
                    for name in ("postgresql", "redis", "http", "ssh")},
        "rows": 201, "left": [],
        "system": {"units": 57, "restarted": [], "failed": [], "booted_anew": False, "problem": None}},
    "floor": ROUNDS,
    "client": {"requests": 6055, "lost": 0, "wrong": 0, "longest_gap_ms": 790.1, "problem": None},
    "server": {"values_verified": 65536, "values_wrong": 0, "started_anew": False, "problem": None},
    "values_verified": 65536, "left": [], "load": 1.25,
}


def changed(path: str, value: object) -> Figures:
    """The good figures but for one, which `path` leads to: `nat.server.problem`."""
    found: Any = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    inner = found
    for key in way:
        inner = inner[key]
    assert last in inner
    inner[last] = value
    return typing.cast(Figures, found)


# --- the verdict ----------------------------------------------------------------------------------------------


@pytest.fixture
def concluded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Figures], int]:
    """How the demo ends with these figures; its report goes to build/demo.json in the test's folder."""
    monkeypatch.setattr(demo, "REPORT", tmp_path / "build" / "demo.json")
    return demo.conclude


def test_good_figures(concluded: Callable[[Figures], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert concluded(GOOD) == 0
    said = capsys.readouterr()
    assert figures.table(GOOD) in said.out
    assert "Nothing was lost" in said.out
    assert said.err == ""
    assert json.loads((tmp_path / "build" / "demo.json").read_text()) == GOOD


@pytest.mark.parametrize(("path", "value", "sentence"), [
    ("client.lost", 1, "1 answer to the client got lost"),
    ("client.lost", 7, "7 answers to the client got lost"),
    ("client.wrong", 1234, "1,234 answers to the client had the wrong content"),
    ("client.problem", "Connection reset by peer", "the client's connection broke: Connection reset by peer"),
    ("server.values_wrong", 3, "stage by stage and back: 3 values of 65,536 on the server had the wrong content"),
    ("server.started_anew", True, "stage by stage and back: the server was started anew"),
    ("server.problem", "its container is STOPPED", "stage by stage and back: the server is not as it was: its"),
    ("server.values_verified", 0, "stage by stage and back: the server has none of its values"),
    ("nat.server.values_wrong", 1, "through two NATs: 1 value of 65,535 on the server had the wrong content"),
    ("nat.server.started_anew", True, "through two NATs: the server was started anew"),
    ("nat.server.problem", "timed out", "through two NATs: the server is not as it was: timed out"),
    ("whole_system.clients.ssh.problem", "the session has ended", "the whole system: ssh: the session has ended"),
    ("whole_system.system.problem", "it is STOPPED", "the whole system: it is not as it was: it is STOPPED"),
    ("whole_system.system.booted_anew", True, "the whole system: it was booted anew"),
    ("whole_system.system.restarted", ["ssh.service"], "the whole system: ssh.service was restarted"),
    ("whole_system.system.failed", ["cron.service"], "the whole system: cron.service has failed"),
    ("whole_system.left", ["hosta: mount: x"], "left behind on hosta: mount: x"),
    ("left", ["hostb: /pool/.migrator/shop"], "left behind on hostb: /pool/.migrator/shop"),
    ("nat.left", ["hosta: /run/migrator/0123abcd"], "left behind on hosta: /run/migrator/0123abcd"),
])
def test_what_makes_it_fail(concluded: Callable[[Figures], int], tmp_path: Path, capsys: pytest.CaptureFixture[str],
                            path: str, value: object, sentence: str) -> None:
    bad = changed(path, value)
    assert concluded(bad) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"demo: {sentence}")
    assert "Nothing was lost" not in said.out
    assert figures.table(bad) in said.out  # the figures are shown all the same
    assert json.loads((tmp_path / "build" / "demo.json").read_text()) == bad


def times(figures: object, path: str = "") -> list[str]:
    """The paths of everything in the figures that is a time, or is made of times."""
    if not isinstance(figures, dict):
        return []
    found = [path + key for key in figures if key.endswith("_ms") or key in ("seconds", "ratio", "load")]
    return found + [each for key, inner in figures.items() for each in times(inner, f"{path}{key}.")]


@pytest.mark.parametrize("path", times(GOOD))
@pytest.mark.parametrize("value", [0.0, 3_600_000.0])
def test_a_time_is_never_a_failure(concluded: Callable[[Figures], int], path: str, value: float) -> None:
    assert concluded(changed(path, [value] if ".floor." in f".{path}" else value)) == 0


def test_times_are_found_in_every_part() -> None:
    assert {"frozen_ms", "client.longest_gap_ms", "one_command.seconds", "nat.ratio", "whole_system.back.frozen_ms",
            "whole_system.clients.ssh.longest_gap_ms", "load"} <= set(times(GOOD))


def test_a_command_that_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Figures:
        raise hosts.DemoFailed("migrator check shop on hosta: exit status 2")

    report = tmp_path / "demo.json"
    report.write_text("of an earlier run")
    monkeypatch.setattr(hosts, "INSTANCE", "test-of-the-demo")
    monkeypatch.setattr(demo, "REPORT", report)
    monkeypatch.setattr(demo, "watched", fails)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert demo.main() == 2
    assert capsys.readouterr().err == "demo: migrator check shop on hosta: exit status 2\n"
    assert not report.exists()


# --- from what the hosts say ----------------------------------------------------------------------------------

BEFORE = {"running": True, "state": "RUNNING", "intact": True, "start": "c0ffee", "count": 0}
AFTER = BEFORE | {"count": 5001, "values": 65536, "bad": 0}
SEEN = {"requests": 5000, "lost": 0, "wrong": 0, "longest_gap_ms": 801.2, "problem": None,
        "gaps": [{"until": 101.5, "ms": 801.2}, {"until": 200.0, "ms": 60.0}]}


def test_a_server_that_is_as_it_was() -> None:
    assert figures.wrong_server(figures.server_of(BEFORE, AFTER)) == []


@pytest.mark.parametrize("after", [
    AFTER | {"bad": 1},
    AFTER | {"start": "decaf"},
    {"running": False, "state": "STOPPED", "intact": False},
    {"running": False, "state": "ABSENT", "intact": False},
    {"running": True, "state": "RUNNING", "intact": False, "problem": "TimeoutError: timed out"},
    AFTER | {"values": 0},
])
def test_a_server_that_is_not(after: dict[str, Any]) -> None:
    assert len(figures.wrong_server(figures.server_of(BEFORE, after))) == 1


def test_an_answer_that_the_server_does_not_know_of_is_lost() -> None:
    assert figures.client_of(SEEN, AFTER)["lost"] == 0
    assert figures.client_of(SEEN, AFTER | {"count": 4998})["lost"] == 2
    assert figures.client_of(SEEN | {"lost": 1}, AFTER | {"count": 4998})["lost"] == 3
    assert figures.client_of(SEEN | {"lost": 1}, {"running": False})["lost"] == 1


def test_a_move_from_both_journals() -> None:
    source = {"frozen_at": 100.75, "bytes": {"full": 1, "increment": 2, "memory": 3, "spool": 4}}
    assert figures.watched_move(SEEN, source, {"restored_at": 101.51}, 8.91234, ROUNDS) == {
        "frozen_ms": 760.0, "floor_ms": 380.0, "ratio": 2.0, "seconds": 8.912, "longest_gap_ms": 801.2,
        "bytes": {"full": 1, "increment": 2, "memory": 3},
    }


UNITS = {"system": "running", "units": {"ssh.service": "1", "cron.service": "2", "run-credentials-x.mount": "3"},
         "failed": ["a.service"], "boot": "b00t"}
WHOLE = BEFORE | UNITS


def test_a_system_that_is_as_it_was() -> None:
    after = WHOLE | {"units": {"ssh.service": "1", "cron.service": "2", "new.service": "4"}}
    found = figures.system_of(WHOLE, after)
    assert figures.wrong_system(found) == [] and found["units"] == 3
    assert "none was restarted" in figures.unchanged(found)


@pytest.mark.parametrize(("after", "said"), [
    (WHOLE | {"units": UNITS["units"] | {"ssh.service": "9"}}, ["ssh.service was restarted"]),  # type: ignore[operator]
    (WHOLE | {"units": {"ssh.service": "1"}}, ["cron.service was restarted"]),
    (WHOLE | {"failed": ["a.service", "b.service"]}, ["b.service has failed"]),
    (WHOLE | {"boot": "another"}, ["it was booted anew"]),
    ({"running": False, "state": "STOPPED", "intact": False}, ["it is not as it was: it is STOPPED"]),
    (BEFORE | {"intact": False, "system": ""}, ["it is not as it was: its counter"]),
    (BEFORE | {"intact": False, "problem": "timed out"}, ["it is not as it was: timed out"]),
])
def test_a_system_that_is_not(after: dict[str, Any], said: list[str]) -> None:
    found = figures.wrong_system(figures.system_of(WHOLE, after))
    assert len(found) == 1 and found[0].startswith(said[0])


def test_the_floor_of_a_whole_system_is_in_its_move() -> None:
    source = {"frozen_at": 100.75, "bytes": {"full": 1, "increment": 2, "memory": 3, "spool": 4},
              "events": [{"step": "freeze", "time": 1.0}, {"step": "offer", "figures": {"dump_seconds": 0.5}}]}
    destination = {"restored_at": 101.75, "events": [
        {"step": "restore", "phase": "done", "state": "restoring", "time": 101.0},
        {"step": "restore", "phase": "begin", "time": 101.1}, {"step": "restore", "phase": "done", "time": 101.6},
        {"step": "restored", "phase": "done", "state": "restored", "time": 101.75}]}
    seen = {"ssh": {"gaps": []}, "http": {"gaps": [{"until": 101.8, "ms": 900.0}]}}
    assert figures.system_move(seen, source, destination, 5.0) == {
        "frozen_ms": 1000.0, "floor_ms": 1000.0, "ratio": 1.0, "seconds": 5.0, "longest_gap_ms": 900.0,
        "bytes": {"full": 1, "increment": 2, "memory": 3},
    }


# --- the floor ------------------------------------------------------------------------------------------------


def test_the_floor_is_the_median_round() -> None:
    assert floor.floor_ms(ROUNDS) == 380.0
    assert floor.floor_ms(floor.together([ROUNDS, {"dump_ms": [100.0], "restore_ms": [100.0]}])) == 370.0


def test_no_floor() -> None:
    assert floor.floor_ms({"dump_ms": [], "restore_ms": []}) is None
    assert floor.ratio(839.4, None) is None
    assert floor.ratio(839.4, 0.0) is None
    assert floor.ratio(839.4, 380.0) == 2.21


# --- the table ------------------------------------------------------------------------------------------------


def cells(found: Figures) -> list[list[str]]:
    """The rows of the moves."""
    return [re.split(" {2,}", line) for line in figures.table(found).splitlines()[2:7]]


def test_the_table_has_every_figure() -> None:
    assert cells(GOOD) == [
        ["stage by stage", "839 ms", "380 ms", "2.21", "790 ms", "0", "0", "124.4 MiB", "89.4 MiB", "8.91 s"],
        ["back in one command", "584 ms", "380 ms", "1.54", "601 ms", "0", "0", "0.0 MiB", "89.5 MiB", "1.23 s"],
        ["whole system", "1,064 ms", "940 ms", "1.13", "1,101 ms", "0", "0", "317.0 MiB", "46.1 MiB", "6.01 s"],
        ["whole system, back", "1,124 ms", "980 ms", "1.15", "1,151 ms", "0", "0", "0.0 MiB", "46.1 MiB", "2.51 s"],
        ["through two NATs", "653 ms", "402 ms", "1.62", "-", "-", "0", "126.3 MiB", "90.0 MiB", "3.63 s"],
    ]
    lines = figures.table(GOOD).splitlines()
    assert re.split(" {2,}", lines[8]) == ["stage", "check", "finish"]
    assert re.split(" {2,}", lines[9]) == ["took", "0.47 s", "0.42 s"]
    for figure in ("median of 3", "6,055", "65,536", "65,535", "4 clients", "57 units"):
        assert figure in figures.legend(GOOD)
    assert max(len(line) for line in lines) <= 110


@pytest.mark.parametrize(("least", "shown"), [(None, "-"), (0.0, "0 ms")])
def test_the_table_without_a_floor(least: float | None, shown: str) -> None:
    found = changed("one_command.floor_ms", least)
    found["one_command"]["ratio"] = floor.ratio(583.5, least)
    assert cells(found)[1][1:5] == ["584 ms", shown, "-", "601 ms"]
    assert cells(found)[0] == cells(GOOD)[0]


def test_the_table_tells_what_was_lost_or_wrong() -> None:
    bad = changed("client.lost", 1)
    bad["client"]["wrong"], bad["server"]["values_wrong"], bad["nat"]["server"]["values_wrong"] = 2, 3, 4
    bad["whole_system"]["clients"]["ssh"]["problem"] = "the session has ended"
    bad["whole_system"]["system"]["restarted"] = ["ssh.service", "cron.service"]
    assert [row[5:7] for row in cells(bad)] == [["1", "5"], ["1", "5"], ["1", "2"], ["1", "2"], ["-", "4"]]


def test_a_wait_too_short_for_the_list() -> None:
    short = changed("longest_gap_ms", 0.0)
    assert cells(short)[0][4] == "< 0.05 s"
    short["client"]["problem"] = "Connection reset by peer"  # so nobody waited any more
    assert [row[4] for row in cells(short)[:2]] == ["broken", "601 ms"]
    whole = changed("whole_system.longest_gap_ms", 0.0)
    whole["whole_system"]["clients"]["http"]["problem"] = "the status is (500, True), not (200, True)"
    assert [row[4] for row in cells(whole)[2:4]] == ["broken", "1,151 ms"]


def test_the_documentation_names_every_key() -> None:
    told = figures.__doc__ or ""
    kinds = (figures.Figures, figures.NatMove, figures.Client, figures.Server, figures.Stage, figures.Bytes,
             figures.WatchedMove, figures.WholeSystem, figures.Service, figures.System, floor.Rounds)
    assert {key for kind in kinds for key in typing.get_type_hints(kind) if f"`{key}`" not in told} == set()


# --- memory, hosts, commands ----------------------------------------------------------------------------------


def test_memory_is_touched_in_bounds() -> None:
    assert warm.amount(16 << 30) == warm.WANTED
    assert warm.amount(1 << 30) == 512 << 20
    assert warm.amount(5000) == 0
    assert warm.amount(0) == 0
    assert 0 < warm.available() < 1 << 50


def test_memory_is_really_touched() -> None:
    script = ("import resource; from bench import warm; assert warm.touch(96 << 20) is not None;"
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    kibibytes = int(subprocess.run([sys.executable, "-c", script], cwd=TREE, capture_output=True, check=True).stdout)
    assert kibibytes > 96 << 10


def test_memory_that_cannot_be_had_is_no_failure() -> None:
    assert warm.touch(1 << 60) is None


@pytest.mark.parametrize(("given", "instance"), [(None, "demo"), ("", "demo"), ("mine", "mine")])
def test_which_rig(given: str | None, instance: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MIGRATOR_RIG"}
    if given is not None:
        environment["MIGRATOR_RIG"] = given
    script = "from bench import hosts; print(hosts.INSTANCE, hosts.ENVIRONMENT['MIGRATOR_RIG'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=TREE, env=environment, capture_output=True, check=True)
    assert done.stdout.decode().split() == [instance, instance]


def test_one_demo_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "INSTANCE", "test-of-the-demo")
    with hosts.alone(), pytest.raises(hosts.DemoFailed, match="another demo"), hosts.alone():
        pass
    with hosts.alone():  # it is free again
        pass


def test_its_commands_are_those_of_the_command_line() -> None:
    from migrator.cli import parse

    for stage, _, arguments, _ in demo.STAGES:
        assert stage == parse([stage, "web", *arguments]).stage.NAME
