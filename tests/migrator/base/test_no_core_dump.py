# SPDX-License-Identifier: GPL-2.0-or-later
"""No core dump of a program that has keys in its memory, and nothing of that for what it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from migrator.base import no_core_dump
from stages import agent, resume
from stages.steps import arguments

# What a program has that a container which it starts would have too; 3 is PR_GET_DUMPABLE (prctl(2)).
SAYS = """
import ctypes, json, os, resource
def says():
    umask = os.umask(0); os.umask(umask)
    return {"dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), "umask": umask,
            "limits": [resource.getrlimit(each) for each in range(16)]}
"""
PROGRAM = SAYS + """
import sys
from migrator.base import no_core_dump
from migrator.base.run import run
before = says()
no_core_dump.of_this()
child = run([sys.executable, "-c", sys.argv[1] + "print(json.dumps(says()))"]).text
print(json.dumps([before, says(), json.loads(child)]))
"""


def test_what_it_starts_has_all_as_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, SAYS], capture_output=True, text=True, check=True)
    before, own, child = json.loads(done.stdout)
    assert own == before | {"dumpable": 0}
    assert child == before and child["dumpable"] == 1


class Begun(Exception):
    pass


def begin(*_: object, **__: object) -> Any:
    raise Begun


@pytest.mark.parametrize(("run", "options"), [
    (agent.run, agent.AgentOptions()),
    (resume.run, resume.ResumeOptions(at_boot=True)),
], ids=["agent", "resume"])  # fmt: skip
def test_a_service_that_has_keys_begins_with_it(run: Callable[[Any], object], options: object,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(no_core_dump, "of_this", lambda: called.append(True))
    monkeypatch.setattr(arguments, "require_root", lambda _name: None)
    monkeypatch.setattr("tunnel.identity.own_identity.Identity.load", begin)
    monkeypatch.setattr(resume, "every", begin)
    with pytest.raises(Begun):
        run(options)
    assert called
