# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: what it takes, what it answers, and how every failure ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import migrator
import stages
from migrator import cli, manual
from migrator.__main__ import main
from migrator.base import log
from migrator.base.result import Result, of_dry_run
from migrator.errors.containers import InvalidName
from migrator.errors.data import NoSpace
from migrator.errors.this_host import NotRoot
from migrator.remote.destination import ConnectOptions
from stages import cleanup, import_data, prepare_data, status
from stages.steps.options import MoveRequest, NamedContainer, TargetOptions

COMMANDS = [stage.NAME for stage in stages.load_all()]


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """main() sets signals and the log up for its process; here others come after it."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setattr(log, "as_json", log.as_json)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def status_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[status.StatusOptions], Result | None]], None]:
    """Put something else in the place of what `migrator status` does."""
    return lambda function: monkeypatch.setattr("stages.status.run", function)


def ends_with(status: int, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == status


# --- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=lambda a: a[0])
def test_help_ends_with_the_exit_statuses(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, argv)
    text = capsys.readouterr().out
    last = text[text.rindex("\n\n"):]
    assert last.startswith("\n\nexit status:\n")
    assert re.findall(r"^  (\S+)  ", last, re.MULTILINE) == ["0", "1", "2", "3", "4", "5", "10-99", "128+N"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, ["--version"])
    assert capsys.readouterr().out == f"migrator {migrator.__version__}\n"


@pytest.mark.parametrize("stage", stages.load_all(), ids=lambda stage: stage.NAME)
def test_every_command_is_described(stage: object) -> None:
    name, help_, description = (getattr(stage, key) for key in ("NAME", "HELP", "__doc__"))
    assert name == name.lower()
    assert help_ and not help_.endswith(".")
    assert description.strip().splitlines()[0].endswith((".", "?"))


def test_every_option_has_a_help_text() -> None:
    for name, parser in manual.commands().items():
        for action in parser._actions:
            assert action.help, f"{name} {action.option_strings}"


# --- arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [
    ["import-data", "web"], ["import-data", "-n", "web"], ["import-data", "--name=web"], ["import-data", "-nweb"],
    ["import-data", "web", "-n", "web"],
])
def test_a_name_as_word_or_option(argv: list[str]) -> None:
    assert cli.parse(argv).options == import_data.ImportDataOptions(NamedContainer("web"))


def test_the_name_is_optional_where_all_are_meant() -> None:
    assert cli.parse(["status"]).options == status.StatusOptions("")
    assert cli.parse(["cleanup", "web"]).options == cleanup.CleanupOptions("web")


@pytest.mark.parametrize(("argv", "word"), [
    ([], "COMMAND"), (["move"], "invalid choice"), (["check"], "name of a container is missing"),
    (["check", "a", "-n", "b"], "two different names"), (["prepare-data", "web"], "--destination"),
    (["create-dump", "web", "-d", "b", "--max-downtime", "0"], "above zero"),
    (["create-dump", "web", "-d", "b", "--max-downtime", "nan"], "above zero"),
    (["create-dump", "web", "-d", "b", "--max-downtime", "soon"], "soon"),
    (["check", "web", "--timeout", "-1"], "above zero"), (["check", "web", "--map-bridge", "br0"], "HERE=THERE"),
    (["check", "web", "--map-bridge", "br 0=br1"], "interface name"), (["check", "web", "--dest", "b"], "unrecognized"),
    (["prepare-data", "web", "-d", "b", "--bwlimit", "inf"], "above zero"),
    (["prepare-data", "web", "-d", "b", "--bwlimit", "0.1"], "above zero"),
    (["prepare-data", "web", "-d", "b", "--bwlimit", "fast"], "fast"),
])
def test_wrong_usage(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: migrator")
    assert word in captured.err.splitlines()[-1]
    ends_with(2, [*argv, "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["status"]) == ("usage-error", 2)
    assert word in error["message"]


def test_values() -> None:
    found = cli.parse(["prepare-data", "web", "-d", "hostb", "--map-bridge", "a=b", "--map-bridge", "c=d", "--bwlimit",
                       "1.5M", "--timeout", "5"]).options
    assert found == prepare_data.PrepareDataOptions(
        MoveRequest(NamedContainer("web"), "hostb", ConnectOptions(timeout=5.0),
                    TargetOptions(bridges=(("a", "b"), ("c", "d")))), bwlimit=1572864)
    found = cli.parse(["prepare-data", "web", "-d", "hostb", "--bwlimit", "100"]).options
    assert isinstance(found, prepare_data.PrepareDataOptions) and found.bwlimit == 100


@pytest.mark.parametrize(("options", "level"), [
    ([], log.Level.NORMAL), (["-v"], log.Level.VERBOSE), (["-q"], log.Level.QUIET), (["--debug"], log.Level.DEBUG),
    (["-q", "--debug"], log.Level.DEBUG),
])
def test_levels(options: list[str], level: log.Level) -> None:
    cli.parse(["status", *options])
    assert log.level == level


# --- results and failures -------------------------------------------------------------------------------------


def test_a_result_for_people_and_for_programs(status_runs: Callable[..., None],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    status_runs(lambda _: Result({"migrations": []}, "Nothing to see.", status=1))
    assert main(["status"]) == 1
    assert capsys.readouterr().out == "Nothing to see.\n"
    assert main(["status", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"migrations": []}
    assert captured.err == ""


def test_an_error_and_its_cure(status_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: status.StatusOptions) -> None:
        raise NoSpace(where="/pool", free="1 MiB", needed="2 MiB", what="this")

    status_runs(fail)
    assert main(["status"]) == NoSpace.status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("migrator: /pool has 1 MiB free, but 2 MiB is needed for this.\n"
                            f"  {NoSpace.cure}\n")
    assert main(["status", "--json"]) == NoSpace.status
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert (error["code"], error["status"], error["fields"]["where"]) == ("no-space", NoSpace.status, "/pool")
    assert [json.loads(line)["error"] for line in captured.err.splitlines()] == [error]


def test_our_own_mistakes(status_runs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: status.StatusOptions) -> None:
        raise KeyError("oops")

    status_runs(fail)
    assert main(["status"]) == 2
    err = capsys.readouterr().err
    assert "KeyError: 'oops'" in err
    assert "Traceback" not in err
    assert "--debug" in err
    assert main(["status", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from(status_runs: Callable[..., None],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: status.StatusOptions) -> None:
        raise NotRoot(command="migrator status")

    status_runs(fail)
    assert main(["status", "--debug"]) == NotRoot.status
    assert "Traceback" in capsys.readouterr().err


def test_root_is_needed_for_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command, parser in manual.commands().items():
        if parser.get_default("name_required") is None and command != "serve":
            continue
        needed = ["-d", "hostb"] if command in ("migrate", "prepare-data", "create-dump") else []
        name = [] if command == "serve" else ["web"]
        assert main([command, *name, *needed]) == NotRoot.status
        assert f"migrator {command} needs root" in capsys.readouterr().err


def test_dry_run_can_be_pasted() -> None:
    result = of_dry_run([("hosta", ["btrfs", "send", "/pool/a b"]), ("hostb", ["btrfs", "receive", "/pool"])])
    assert result.text == "hosta# btrfs send '/pool/a b'\nhostb# btrfs receive /pool"
    assert result.data["dry_run"][1] == {"host": "hostb", "argv": ["btrfs", "receive", "/pool"]}


# --- as a process ---------------------------------------------------------------------------------------------

SLOW = """
import sys, time, os
from migrator.__main__ import main
import stages.status

def run(args):
    try:
        print("started", flush=True)
        while True:  # a signal that comes just before a sleep is noticed after it
            time.sleep(0.05)
    finally:
        print("undone", flush=True)
        while "stubborn" in sys.argv:
            time.sleep(0.05)

stages.status.run = run
sys.exit(main(["status"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    command = ["env", "--default-signal", sys.executable, "-c", SLOW]  # these tests may run with nohup
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        process.send_signal(number)
        out, err = process.communicate()
    assert out == "undone\n"
    assert err == f"migrator: Interrupted by {number.name}.\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_ctrl_c_ends_it_at_once_and_no_hang_up(number: signal.Signals) -> None:
    """The kernel delivers a SIGHUP before a SIGINT (next_signal in its signal.c)."""
    with subprocess.Popen(["env", "--default-signal", sys.executable, "-c", SLOW, "stubborn"], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        process.send_signal(number)
        assert process.stdout.readline() == "undone\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


def test_nohup_is_respected() -> None:
    """What was started with a signal ignored goes on ignoring it, as every program of coreutils does."""
    with subprocess.Popen(["nohup", sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # the first that counts
        out, err = process.communicate()
    assert (out, err) == ("undone\n", "migrator: Interrupted by SIGTERM.\n")
    assert process.returncode == 128 + signal.SIGTERM


DONE = """
import sys
from migrator.__main__ import main
from migrator.base.result import Result
import stages.status

stages.status.run = lambda args: Result({"stage": "status"}, "done", status=1)
sys.exit(main(["status", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_result_that_cannot_be_written_changes_nothing(options: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", DONE, *options], stdin=subprocess.DEVNULL, stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1, "what the work ended with"
    assert "could not be written to stdout: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with Path("/dev/full").open("wb") as full:
        deaf = subprocess.run([sys.executable, "-c", DONE, *options], stdin=subprocess.DEVNULL, stdout=full,
                              stderr=full, check=False)
    assert deaf.returncode == 1


def test_an_error_that_cannot_be_written_keeps_its_exit_status() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-m", "migrator", "status", "no/name", "--json"], check=False,
                              stdin=subprocess.DEVNULL, stdout=full, stderr=full)
    assert done.returncode == InvalidName.status


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """`migrator --help | head -1` says nothing about broken pipes."""
    command = f"{sys.executable} -m migrator status --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stdout.splitlines()[0].startswith("usage: migrator status")
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_heavy_modules_are_imported_only_where_used() -> None:
    """Not even for `migrator --help`, which has every command."""
    code = "import sys; from migrator import cli; cli.make_parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "migrator.cli" in loaded
    assert not {"lxc", "paramiko", "cryptography", "pyroute2", "pybtrfs"} & set(loaded)
