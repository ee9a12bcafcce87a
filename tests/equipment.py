# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of the equipment: of the two-host rig and of what tests do with it. They take minutes, and tell nothing of
migrator, so that they run only where the equipment is not the one that they have passed for.

    python -m tests.equipment    run them; when all have passed, record for what

What they have passed for is a digest in tests/equipment.digest, committed with the change: of every file that the rig
is made of and made with, and of these tests. So nobody has to know what a change was made to, and no history of git's
is asked: a tree is either the recorded one, or the tests run. What lies outside the tree (the kernel, the packages in
the root file systems) is looked at by `make test-all`, which runs them always.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[1]
RECORD = "tests/equipment.digest"
TESTS = ("tests/vagrant", "tests/rig/test_rig.py", "tests/rig/test_harness.py", "tests/rig/test_told.py")
# setup.cfg has the packages that are put into the hosts' root file systems.
MADE_OF = ("vagrant", "setup.cfg", "harness/rig.py", "harness/scripts.py", "tests/equipment.py",
           "tests/rig/clean_hosts.py", "tests/rig/conftest.py", "tests/rig/machine.py", "tests/rig/sessions.py",
           "tests/rig/told.py", "tests/rig/udp_asker.py", "tests/rig/udp_reflector.py")


def is_test(path: Path) -> bool:
    """Whether a test module is one of them."""
    return any(path.is_relative_to(TREE / name) for name in TESTS)


def is_recorded(tree: Path) -> bool:
    """Whether the equipment is the one that its tests have passed for."""
    try:
        recorded = (tree / RECORD).read_text()
    except FileNotFoundError:
        return False
    return recorded.strip() == digest(tree)


def digest(tree: Path) -> str:
    """One digest of all of it: of two changes that were merged, nobody has tried the sum."""
    total = hashlib.sha256()
    for path in files(tree):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(tree)} {os.access(path, os.X_OK)} {content}\n".encode())
    return total.hexdigest()


def files(tree: Path) -> list[Path]:
    """What is digested, in order. Text for people, and what Python and Vagrant put there themselves, is left out."""
    found = {path for name in (*MADE_OF, *TESTS) for path in _below(tree / name)}
    made = {"__pycache__", ".vagrant"}
    return sorted(path for path in found if path.suffix != ".md" and not made & set(path.parts))


def _below(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else (each for each in path.rglob("*") if each.is_file())


def main() -> int:
    """Run them, and record it if all of them have passed for what is there now."""
    os.environ["CI"] = "true"  # one that was skipped has not passed
    before = digest(TREE)
    status = int(pytest.main([str(TREE / name) for name in TESTS]))
    if status == 0 and digest(TREE) != before:
        print("The equipment was changed while its tests ran: run them again.", file=sys.stderr)
        return 1
    if status == 0:
        (TREE / RECORD).write_text(f"{before}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
