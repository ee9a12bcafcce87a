# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug-in for pytest: what other processes of a test have called counts as called by the test.

mutmut counts in its own process alone. So each program that a test starts, and so finds SITECUSTOMIZE on its path (site
in Python's library), writes into a file what it calls, and so does each child that the test forks. After the test that
is read.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

CALLED = "MUTANTS_CALLED"  # the file, in the environment


def count_into(path: str) -> None:
    """Have this process write there what it calls."""
    trampoline: Any = importlib.import_module("mutmut.mutation.trampoline")

    def called(name: str, caller: object = None) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # anew: a child may close all that is open
            os.write(fd, name.encode() + b"\n")
            os.close(fd)
        except OSError:  # it is root no more, say
            pass

    trampoline.record_trampoline_hit = called


SITECUSTOMIZE = f"""\
import importlib
import os
{inspect.getsource(count_into)}
if os.environ.get("MUTANT_UNDER_TEST") == "stats" and "{CALLED}" in os.environ:
    count_into(os.environ["{CALLED}"])
"""


def pytest_configure() -> None:
    if path := os.environ.get(CALLED):
        os.register_at_fork(after_in_child=lambda: count_into(path))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    path = Path(os.environ.get(CALLED, "/nowhere"))
    if path.exists():
        state: Any = importlib.import_module("mutmut.state").state
        state()._stats.update(path.read_text().split())
        path.write_text("")
