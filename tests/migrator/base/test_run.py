# SPDX-License-Identifier: GPL-2.0-or-later
"""How programs are started, and how their failures look."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from migrator.base import log
from migrator.base import run as run_module
from migrator.base.run import ERROR_LIMIT, environment, outcome, run, shown, started
from migrator.errors import Interrupted
from migrator.errors.this_host import CommandFailed, CommandTimeout, ProgramMissing


def test_output_and_status() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.status, done.text, done.stderr) == (0, "out\n", b"err\n")


def test_nothing_goes_through_a_shell(tmp_path: Path) -> None:
    hostile = f"$(touch {tmp_path}/made); `id` 'quoted' \"too\" *\n"
    assert run(["printf", "%s", hostile]).text == hostile
    assert list(tmp_path.iterdir()) == []


def test_stdin_is_closed_unless_given(tmp_path: Path) -> None:
    assert run(["cat"]).text == ""
    (tmp_path / "in").write_text("given")
    with (tmp_path / "in").open("rb") as file:
        assert run(["cat"], stdin=file).text == "given"


def test_output_can_go_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        assert run(["echo", "there"], stdout=file).text == ""
    assert (tmp_path / "out").read_text() == "there\n"


def test_a_failure_can_be_pasted() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo 'it broke' >&2; exit 7", "a b"])
    error = caught.value
    assert error.fields["outcome"] == "exit status 7"
    assert error.fields["output"] == "it broke"
    assert shlex.split(error.fields["command"]) == ["sh", "-c", "echo 'it broke' >&2; exit 7", "a b"]


def test_a_failure_without_words_says_so_and_stdout_counts() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["false"])
    assert caught.value.fields["output"] == "no output"
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo only here; exit 1"])
    assert caught.value.fields["output"] == "only here"


def test_a_long_output_is_cut() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "seq 100000 >&2; exit 1"])
    assert len(caught.value.fields["output"]) < 2100
    assert caught.value.fields["output"].endswith("100000")


def test_unchecked() -> None:
    assert run(["sh", "-c", "exit 3"], check=False).status == 3


@pytest.mark.parametrize(("status", "words"), [(1, "exit status 1"), (-9, "SIGKILL"), (-200, "signal 200")])
def test_outcome_in_words(status: int, words: str) -> None:
    assert outcome(status) == words


def test_a_signal_has_its_name() -> None:
    with pytest.raises(CommandFailed, match="SIGSEGV"):
        run(["sh", "-c", "kill -SEGV $$"])


@pytest.mark.parametrize(("program", "package"), [("no-such-program", "no"), ("criu-is-not-here", "criu")])
def test_a_missing_program_names_its_package(program: str, package: str) -> None:
    with pytest.raises(ProgramMissing) as caught:
        run([program])
    assert program in str(caught.value)
    assert package in caught.value.hint


def test_known_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("migrator.base.run.environment", lambda _extra=None: {"PATH": str(tmp_path)})
    with pytest.raises(ProgramMissing) as caught:
        run(["btrfs", "version"])
    assert caught.value.hint == "Install it: apt-get install btrfs-progs"


def test_a_limit() -> None:
    with pytest.raises(CommandTimeout, match=r"within 0\.05 seconds"):
        run(["sleep", "infinity"], limit=0.05)


def test_the_limit_ends_the_whole_group() -> None:
    with started(["sh", "-c", "sleep infinity & echo $!; wait"], stdout=subprocess.PIPE) as program:
        child = int(program.stdout.readline())
        with pytest.raises(CommandTimeout, match="within 0 seconds"):
            program.wait(0)
        wait_until_gone(child)


def test_a_program_does_not_have_our_terminal() -> None:
    """It is not of our session: what is started in a container could read and type on the operator's terminal."""
    said = run([sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"])
    assert said.stdout.strip() == b"True"


def test_what_is_said_on_stderr_is_read_up_to_a_bound() -> None:
    """A hole in it costs the program nothing, and would fill our memory."""
    done = run([sys.executable, "-c", "import os; os.ftruncate(2, 1 << 31); os.lseek(2, 0, 2); os.write(2, b'end')"])
    assert len(done.stderr) == ERROR_LIMIT and done.stderr.endswith(b"end")


def test_the_end_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may be frozen meanwhile. Who looks now and then, and sleeps in between, notices it 40 ms late."""
    def sleep(_: float) -> None:
        raise AssertionError

    monkeypatch.setattr(time, "sleep", sleep)
    assert run(["sleep", "0.01"], limit=600).status == 0


def wait_until_gone(pid: int) -> None:
    """The test's limit ends it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)


def test_a_daemon_that_keeps_the_output_open_does_not_block(tmp_path: Path) -> None:
    """As LXC's monitor does."""
    done = run(["sh", "-c", f"sleep infinity & echo $! >{tmp_path}/pid; echo started"], limit=600)
    assert done.text == "started\n"
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it still runs


def test_leaving_the_block_ends_the_program() -> None:
    with pytest.raises(ZeroDivisionError), started(["sleep", "infinity"], stdout=subprocess.PIPE) as program:
        pid = program.pid
        raise ZeroDivisionError
    wait_until_gone(pid)


def test_pipes() -> None:
    with started(["tr", "a-z", "A-Z"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        program.stdin.write(b"loud")
        program.stdin.close()
        assert program.stdout.read() == b"LOUD"
        program.finish(600)


def test_nothing_private_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    told = dict(line.split("=", 1) for line in run(["env"], env={"EXTRA": "1"}).text.splitlines())
    assert "SECRET" not in told
    assert (told["LC_ALL"], told["EXTRA"]) == ("C.UTF-8", "1")


@pytest.mark.parametrize("path", ["/usr/bin", "", None])
def test_programs_for_root_are_found_from_ssh_and_cron(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.delenv("PATH") if path is None else monkeypatch.setenv("PATH", path)
    folders = environment()["PATH"].split(":")
    assert {"/usr/sbin", "/sbin", "/usr/local/sbin"} <= set(folders)
    assert len(folders) == len(set(folders))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its groups")
def test_supplementary_groups() -> None:
    """What a container keeps of who restores it is what its first program has; ours stay."""
    argv = [sys.executable, "-c", "import os; print(sorted(os.getgroups()))"]
    ours = os.getgroups()
    with started(argv, stdout=subprocess.PIPE, within=lambda: os.setgroups([4242])) as program:
        assert program.stdout.read() == b"[4242]\n"
    try:
        assert run(argv, groups=()).text == "[]\n"
        assert run(argv, within=lambda: None, groups=[4243]).text == "[4243]\n"
        assert os.getgroups() == [4242], "our own are left alone"
    finally:
        os.setgroups(ours)


def test_debug_shows_the_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log, "level", log.Level.DEBUG)
    run(["echo", "a b"])
    err = capfd.readouterr().err
    assert "+ echo 'a b'" in err
    assert "exit status 0 after" in err


def test_shown_takes_paths() -> None:
    assert shown(["cat", Path("/a b")]) == "cat '/a b'"


def test_ctrl_c_while_it_is_being_started_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been started by then, and nobody would know of it."""
    made: list[run_module.Program] = []
    honest = run_module._start

    def start(*given: Any, **more: Any) -> run_module.Program:
        made.append(honest(*given, **more))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert seen.wait(60)
        return made[0]

    def pressed(*_: object) -> None:
        seen.set()
        raise Interrupted(signal="SIGUSR1", number=signal.SIGUSR1)

    seen = threading.Event()
    monkeypatch.setattr(run_module, "_start", start)
    before = signal.signal(signal.SIGUSR1, pressed)
    try:
        with pytest.raises(Interrupted), started(["sleep", "600"], within=lambda: None):
            raise AssertionError("it goes on")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [each.process.returncode for each in made] == [-signal.SIGKILL]
