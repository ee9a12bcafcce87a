# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the other host, a container or a peer calls itself: it reaches a terminal as text, and JSON as it was."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from migrator import cli
from migrator.__main__ import main
from migrator.base import log, sd_notify
from migrator.base.log import Level
from migrator.base.result import Result
from migrator.errors import MigratorError
from migrator.errors.connection import ProtocolError
from migrator.errors.convert import from_json
from migrator.errors.this_host import CommandFailed
from migrator.preflight.findings import Code, Severity, painted, render, to_json
from migrator.transfer import frames, progress
from stages.steps import pair_hosts
from tunnel.tunnel_errors import PeerRefuses

EVIL = "web\x1b]0;owned\x07\r\x9b2J\u202egnp.exe\u2066\u2028\x00\x7f\ud800\nmigrator: all is well"
ODD = Code("odd-name", Severity.WARNING, "For this test.")
texts = st.text(max_size=80) | st.text(st.sampled_from("\x1b[31;1m\x07\r\n\x9b\u202e\u2028\ud800 a"), max_size=30)
fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def terminal(*, as_json: bool = False, level: Level = Level.DEBUG, colour: bool = False) -> Iterator[Terminal]:
    """Both outputs are one terminal."""
    shown = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", shown)
        patch.setattr(sys, "stdout", shown)
        patch.setattr(log, "level", level)
        patch.setattr(log, "as_json", as_json)
        patch.setenv("TERM", "xterm")
        if colour:
            patch.delenv("NO_COLOR", raising=False)
        else:
            patch.setenv("NO_COLOR", "1")
        yield shown


def harmless(shown: str) -> bool:
    return all(line.isprintable() for line in shown.split("\n"))


def raised(text: str) -> MigratorError:
    """An error of the other host's with that in all its parts."""
    error = {"code": "command-failed", "message": text, "fields": {"command": text, "outcome": text, "output": text}}
    return from_json(error, text)


SAYING: list[Callable[[str], None]] = [
    log.error, log.cure, log.warning, log.info, log.verbose, log.debug, log.trace,
    lambda text: log.error(str(raised(text))),
    lambda text: log.error(str(PeerRefuses(name=text, reason=text))),
    lambda text: log.info("with fields", host=text),
]


@fuzzed
@given(texts)
@example(EVIL)
def test_what_is_said(text: str) -> None:
    for say in SAYING:
        with terminal() as shown:
            say(text)
        first, *rest = shown.getvalue().removesuffix("\n").split("\n")
        assert harmless(shown.getvalue())
        # A line that was not there cannot be made up: whatever follows the first is marked as belonging to it.
        assert all(line.startswith("  | ") for line in rest), (first, rest)


@fuzzed
@given(texts)
@example(EVIL)
def test_what_is_said_as_json_is_exact(text: str) -> None:
    for say in (log.error, log.warning, log.info):
        with terminal(as_json=True) as shown:
            say(text, name=text)
        assert harmless(shown.getvalue())
        said = json.loads(shown.getvalue())
        assert said["message"] == said["name"] == text


@fuzzed
@given(texts)
@example(EVIL)
def test_colours_are_ours_alone(text: str) -> None:
    with terminal(colour=True) as shown:
        log.error(text)
    whole = re.fullmatch("\x1b\\[31;1m(.*)\x1b\\[0m\n", shown.getvalue(), re.DOTALL)
    assert whole
    assert harmless(whole[1])


@fuzzed
@given(texts)
@example(EVIL)
def test_results(text: str) -> None:
    with terminal() as shown:
        cli.show(Result({"name": text}, f"moved {text}\nnext: {text}"))
    assert harmless(shown.getvalue())
    with terminal(as_json=True) as shown:
        cli.show(Result({"name": text}, "moved"))
    assert harmless(shown.getvalue())
    assert json.loads(shown.getvalue()) == {"name": text}


@fuzzed
@given(texts)
@example(EVIL)
def test_findings_are_a_line_each_and_exact_in_json(text: str) -> None:
    found = [ODD.found(f"It is called {text}.", text and f"Call it something else than {text}")]
    assert to_json(found)[0]["message"] == f"It is called {text}."
    with terminal() as shown:
        cli.show(Result({}, render(found)))
    lines = shown.getvalue().splitlines()
    assert harmless(shown.getvalue())
    assert len(lines) == (2 if text else 1)
    assert lines[0].startswith("warning  odd-name: It is called")
    with terminal(colour=True) as shown:
        cli.show(Result({}, render(found), paint=painted))
    assert shown.getvalue().count("\x1b") == 2
    assert shown.getvalue().startswith("\x1b[33;1mwarning\x1b[0m  odd-name")


@fuzzed
@given(texts)
@example(EVIL)
def test_progress_and_pairing(text: str) -> None:
    with terminal() as shown, pytest.MonkeyPatch.context() as patch:
        patch.setattr("migrator.record.container_lock.publish", lambda *_: None)
        with progress.Progress(text, 5, iter(range(0, 100, 10)).__next__) as going:
            going.update(3)
    assert harmless(shown.getvalue().replace("\r\x1b[K", ""))
    assert shown.getvalue().count("\x1b") <= 2
    assert "\n" not in shown.getvalue()
    with terminal() as shown:
        pair_hosts._print({}, text)
    assert harmless(shown.getvalue())


def test_from_a_signal_handler(capfd: pytest.CaptureFixture[str]) -> None:
    log.at_signal(EVIL)
    assert harmless(capfd.readouterr().err)


@pytest.mark.parametrize("options", [[], ["--debug"], ["--json"]])
def test_an_error_of_whatever_kind(options: list[str], monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback that --debug shows has the same text in it."""
    monkeypatch.setattr(log, "as_json", False)
    for error in (raised(EVIL), ValueError(EVIL), CommandFailed(command="criu", outcome="failed", output=EVIL)):
        def fail(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("stages.status.run", fail)
        assert main(["status", *options]) >= 2
        out, err = capsys.readouterr()
        assert harmless(out)
        assert harmless(err)
        assert "owned" in err
        assert ("Traceback" in err) == (options == ["--debug"])


def test_what_is_too_long_is_cut() -> None:
    with terminal() as shown:
        log.info("a" * 10_000_000)
        log.info("b\n" * 1_000_000)
    assert len(shown.getvalue()) < 200_000
    assert "more characters" in shown.getvalue()
    assert "more lines" in shown.getvalue()
    with terminal() as shown:
        cli.show(Result({}, "c" * 1_000_000 + "\nlast"))
    assert len(shown.getvalue()) < 20_000
    assert shown.getvalue().endswith("\nlast\n"), "of a result only lines are cut"
    with terminal(as_json=True) as shown:
        cli.show(Result({"name": "d" * 1_000_000}))
    assert len(json.loads(shown.getvalue())["name"]) == 1_000_000


def test_a_terminal_that_knows_few_characters() -> None:
    """Python refuses to write what stdout's encoding does not have."""
    raw = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, io.TextIOWrapper(raw, encoding="ascii") as narrow:
        patch.setattr(sys, "stdout", narrow)
        patch.setattr(log, "as_json", False)
        cli.show(Result({}, "web → ü"))
        narrow.flush()
        assert raw.getvalue() == b"web \\u2192 \\xfc\n"


# --- Where it comes in ---


@pytest.mark.parametrize("host", [EVIL, "", "a\nb", "x" * 256, "\x1b[2J", " "])
def test_a_greeting_under_a_name_that_is_none(host: str) -> None:
    said = {"program": "1", "host": host, "timeout": 5.0}
    body = json.dumps(said).encode()
    with pytest.raises(ProtocolError, match="lacks program or host"):
        frames.parse_greeting(frames.GREETING.pack(frames.MAGIC, frames.VERSION, len(body)), memoryview(body))


def test_an_errors_parts_are_bounded() -> None:
    fields = {f"field {n}": "x" * 100_000 for n in range(1000)}
    error = from_json({"code": "command-failed", "fields": fields}, "hostb")
    assert sum(len(key) + len(str(value)) for key, value in error.fields.items()) < 200_000
    assert len(str(from_json({"code": "?", "message": "x" * 10**6}, "hostb"))) < 2000


def test_systemds_status_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of such a message is an order: MAINPID= would have systemd follow another process."""
    sent: list[bytes] = []

    class Socket:
        def __init__(self, *_: Any) -> None:
            pass

        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def connect(self, _: str) -> None:
            pass

        def send(self, data: bytes) -> None:
            sent.append(data)

    monkeypatch.setenv("NOTIFY_SOCKET", os.devnull)
    monkeypatch.setattr("migrator.base.sd_notify.socket.socket", Socket)
    sd_notify.status(f"from peer: {EVIL}\nMAINPID=1")
    assert sent[0].startswith(b"STATUS=from peer: web")
    assert b"\n" not in sent[0]
