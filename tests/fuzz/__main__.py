# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz what reads from the wire, guided by coverage.

    pip install atheris
    python -m tests.fuzz TARGET [libFuzzer's options, such as -max_total_time=60, and folders with a corpus]
    python -m tests.fuzz all 30               each target for 30 seconds

A finding is printed with its traceback and kept as crash-*; `python -m tests.fuzz TARGET crash-…` runs it again.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any


def main(argv: list[str]) -> int:
    if argv[:1] == ["all"]:
        from tests.fuzz.targets import TARGETS

        seconds = argv[1] if len(argv) > 1 else "30"
        statuses = {name: _apart(name, f"-max_total_time={seconds}") for name in TARGETS}
        for name, status in statuses.items():
            print(f"{name:24} {'no finding' if status == 0 else f'FINDING, exit status {status}'}")
        return int(any(statuses.values()))
    if not argv or argv[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    atheris: Any = importlib.import_module("atheris")  # without a name of its own mypy would want it installed
    with atheris.instrument_imports(include=["tunnel"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *argv[1:]], TARGETS[argv[0]])
    atheris.Fuzz()
    return 0


def _apart(name: str, *options: str) -> int:
    """libFuzzer ends the process, so each target has one of its own."""
    argv = [sys.executable, "-m", "tests.fuzz", name, "-verbosity=0", "-rss_limit_mb=1024", *options]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
