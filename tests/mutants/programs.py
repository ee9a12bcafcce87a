# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug-in for pytest: what the programs that a test starts have called counts as called by the test.

mutmut counts in its own process alone. So each other one that finds SITECUSTOMIZE on its path (site in Python's
library) writes into a file what it calls, and after the test that is read.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

CALLED = "MUTANTS_CALLED"  # the file, in the environment
SITECUSTOMIZE = f"""
import os
if os.environ.get("MUTANT_UNDER_TEST") == "stats" and "{CALLED}" in os.environ:
    import mutmut.mutation.trampoline
    def _called(name, caller=None, _fd=os.open(os.environ["{CALLED}"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        os.write(_fd, name.encode() + b"\\n")
    mutmut.mutation.trampoline.record_trampoline_hit = _called
"""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    path = Path(os.environ.get(CALLED, "/nowhere"))
    if path.exists():
        state: Any = importlib.import_module("mutmut.state").state
        state()._stats.update(path.read_text().split())
        path.write_text("")
