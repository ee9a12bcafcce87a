# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command imports before it does anything: two commands lie between freeze and thaw, and how long one takes to
start is downtime. How long that is, `make bench` measures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import stages

# Each of these takes tens of milliseconds; who needs one imports it where it is used.
HEAVY = {"asyncio", "cryptography", "email", "http", "lxc", "multiprocessing", "paramiko", "pybtrfs", "pyroute2",
         "spake2", "ssl", "unittest", "urllib", "websockets", "xml"}

STARTS = """
import contextlib, json, sys
before = set(sys.modules)
from migrator.__main__ import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    main(sys.argv[1:])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("words", [["--version"], ["restore-dump", "--help"], ["finish", "c 1"]],
                         ids=lambda words: str(words[0]))
def test_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", STARTS, *words], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=True)
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"migrator.cli", "stages.steps.arguments"} <= imported, "it has started"
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()
    commands = {f"stages.{name.replace('-', '_')}" for name in stages.COMMANDS}
    assert imported & commands == {f"stages.{word.replace('-', '_')}" for word in words[:1]} & commands, "no other's"
