# SPDX-License-Identifier: GPL-2.0-or-later
"""When the tests of the equipment run: whenever it is not the one that they have passed for."""

from __future__ import annotations

import ast
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import effort, equipment, selection


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the equipment whose tests have just passed."""
    for path in equipment.files(equipment.TREE):
        copy = tmp_path / path.relative_to(equipment.TREE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    (tmp_path / equipment.RECORD).write_text(f"{equipment.digest(tmp_path)}\n")
    assert equipment.is_recorded(tmp_path)
    return tmp_path


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda tree: (tree / "vagrant/riglib/boot.sh").write_text("exit 1\n"),
    "a new file": lambda tree: (tree / "vagrant/riglib/new.py").touch(),
    "a file that is gone": lambda tree: (tree / "vagrant/guests/talk.sh").unlink(),
    "another name": lambda tree: (tree / "vagrant/guests/talk.sh").rename(tree / "vagrant/guests/walk.sh"),
    "no program any more": lambda tree: (tree / "vagrant/rig").chmod(0o644),
    "what tests do with it": lambda tree: (tree / "harness/rig.py").write_text(""),
    "one of its tests": lambda tree: (tree / "tests/rig/test_rig.py").write_text(""),
    "no record": lambda tree: (tree / equipment.RECORD).unlink(),
    "a torn record": lambda tree: (tree / equipment.RECORD).write_text(""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change(tree: Path, change: str) -> None:
    CHANGES[change](tree)
    assert not equipment.is_recorded(tree)


def test_no_change(tree: Path) -> None:
    """What people read, what Python leaves there, and what is no part of it."""
    (tree / "vagrant/README.md").write_text("changed")
    (tree / "vagrant/riglib/__pycache__").mkdir()
    (tree / "vagrant/riglib/__pycache__/state.pyc").touch()
    (tree / "tests/rig/test_migrate.py").touch()
    (tree / "migrator/host").mkdir(parents=True)
    (tree / "migrator/host/lxc.py").touch()
    assert equipment.is_recorded(tree)


def test_all_of_it_is_looked_at() -> None:
    """What its tests import of tests/rig and harness is part of it."""
    known = {str(path.relative_to(equipment.TREE)) for path in equipment.files(equipment.TREE)}
    assert {"vagrant/rig", "vagrant/provision.sh", "vagrant/guests/probe.py", "tests/vagrant/test_nat.py"} <= known
    looked = [name for name in known if name.startswith(("tests/rig/", "harness/"))]
    imported = {name for path in looked for name in imports((equipment.TREE / path).read_text())}
    assert {f"{name.replace('.', '/')}.py" for name in imported} <= known


def imports(text: str) -> set[str]:
    """Modules of tests.rig and harness that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in ("tests.rig", "harness"):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(("tests.rig.", "harness.")):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize(("path", "is_one"), [
    ("tests/rig/test_rig.py", True), ("tests/vagrant/test_nat.py", True), ("tests/rig/test_migrate.py", False),
    ("tests/tunnel/candidates/test_nat.py", False), ("tests/test_equipment.py", False),
])
def test_which_tests_are_its_own(path: str, is_one: bool) -> None:
    assert (equipment.TREE / path).exists()
    assert equipment.is_test(equipment.TREE / path) == is_one


USUAL, NIGHTLY, RIG = "tests/rig/test_migrate.py", "tests/rig/test_fault_matrix.py", "tests/rig/test_rig.py"
MACHINE = "tests/vm/test_of_a_machine.py"


@dataclasses.dataclass(eq=False)
class Item:
    """A test, as far as its selection looks at it."""

    name: str

    @property
    def path(self) -> Path:
        return equipment.TREE / self.name

    def get_closest_marker(self, mark: str) -> bool:
        return (mark, self.name) in {("nightly", NIGHTLY), ("vm", MACHINE)}


@pytest.mark.parametrize(("recorded", "everything", "named", "left_out"), [
    (True, False, False, {NIGHTLY, RIG, MACHINE}), (False, False, False, {NIGHTLY, MACHINE}),
    (True, True, False, {RIG, MACHINE}), (False, True, False, {MACHINE}), (True, False, True, set()),
])
def test_what_is_left_out(monkeypatch: pytest.MonkeyPatch, recorded: bool, everything: bool, named: bool,
                          left_out: set[str]) -> None:
    """Of a whole run, and told; whoever names a file gets what is in it."""
    monkeypatch.setattr(effort, "ALL", everything)
    monkeypatch.setattr(equipment, "is_recorded", lambda _: recorded)
    items: list[Any] = [Item(path) for path in (NIGHTLY, RIG, MACHINE, USUAL)]
    source = pytest.Config.ArgsSource
    told: list[Any] = []
    config: Any = SimpleNamespace(args_source=source.ARGS if named else source.TESTPATHS, stash=pytest.Stash(),
                                  hook=SimpleNamespace(pytest_deselected=lambda items: told.extend(items)))
    selection.leave_out(config, items)
    kept = [item.name for item in items]
    assert set(kept) == {USUAL, NIGHTLY, RIG, MACHINE} - left_out
    assert kept[-1] == (USUAL if NIGHTLY in left_out else NIGHTLY)
    assert len(told) == len(config.stash.get(selection.LEFT_OUT, [])) == len(left_out)
