# SPDX-License-Identifier: GPL-2.0-or-later
"""A name that is none is refused by every command that takes one, before it reads or changes anything."""

from __future__ import annotations

import json
import os
import signal

import pytest

import stages
from migrator import manual
from migrator.__main__ import main
from migrator.base import log
from migrator.errors.containers import InvalidName
from stages.steps import prologue

NAMES = ["../x", "x" * 300, "a\nb", "-rf", "a/b", "\u00e9", "."]
WITH_DESTINATION = ("check", "prepare-data", "create-dump", "migrate")
# They take a container's name. `status` looks one up in the journal, where there is none of that name.
COMMANDS = ("check", "migrate", "resume", "prepare-data", "import-data", "create-dump", "restore-dump", "finish",
            "rollback", "wait", "abort", "cleanup", "prepare-guest")


@pytest.fixture(autouse=True)
def nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, on a host without a journal; the test fails where one would be opened."""
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the journal was opened for a name that is none")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # main() sets it and the log up for its process
    monkeypatch.setattr(log, "level", log.level)
    monkeypatch.setattr(log, "as_json", log.as_json)
    for module in (*stages.load_all(), prologue):
        if hasattr(module, "Journal"):
            monkeypatch.setattr(module, "Journal", opened)


def test_these_are_all_commands_that_take_a_name() -> None:
    takes = {name for name, parser in manual.commands().items() if parser.get_default("name_required") is not None}
    assert takes - {"status"} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    destination = ["-d", "root@hostb"] if command in WITH_DESTINATION else []
    status = main([command, f"--name={name}", *destination, "--json"])
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert (status, error["code"]) == (InvalidName.status, "invalid-name")
