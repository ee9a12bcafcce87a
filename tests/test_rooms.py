# SPDX-License-Identifier: GPL-2.0-or-later
"""What may import what, as docs/architecture.md has it, and no name twice."""

from __future__ import annotations

import ast
import collections
import re
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
BESIDE = ("vagrant", "harness", "bench", "tests")  # what is no part of the program
MODULES = {".".join(path.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__"): path
           for top in ("migrator", "stages", "tunnel") for path in sorted((TREE / top).rglob("*.py"))}


def imports(module: str) -> set[str]:
    """The modules of ours that one imports, be it late, in a function, or for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found |= {full if full in MODULES else node.module} & MODULES.keys()
    return found - {module}


IMPORTS = {module: imports(module) for module in MODULES}


def rooms() -> dict[str, set[str]]:
    """Each room of the table in docs/architecture.md, with those whose modules it may import."""
    text = (TREE / "docs" / "architecture.md").read_text()
    table = text.partition("| folder | holds | may import |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    found: dict[str, set[str]] = {}
    for row in table.splitlines():
        folder, _, may = (cell.strip() for cell in row.strip("|").split("|"))
        room = folder.strip("`").rstrip("/")
        allowed = {each if each in ("tunnel", *BESIDE) else f"migrator/{each}" for each in re.findall(r"`(\w+)`", may)}
        if may.startswith(("the above", "all of the above")):
            allowed = set(found) - allowed
        assert allowed or may in ("-", "nothing of the above"), f"{room} may import what? {may}"
        found[room] = allowed
    return found


ROOMS = rooms()


def room_of(module: str) -> str:
    folders = [room for room in ROOMS if f"{module.replace('.', '/')}/".startswith(f"{room}/")]
    return max(folders, key=len)


def test_each_folder_is_a_room() -> None:
    folders = {path.parent.relative_to(TREE) for path in MODULES.values()}
    assert {"/".join(folder.parts[:2]) for folder in folders if folder.parts[0] == "migrator"} <= ROOMS.keys()
    assert {"migrator", "stages", "tunnel"} <= ROOMS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_room_may(module: str) -> None:
    room = room_of(module)
    beyond = {each for each in IMPORTS[module] if room_of(each) not in {room, *ROOMS[room]}}
    if each := {each for each in beyond if each == "migrator"}:
        beyond -= each  # its version alone
    assert not beyond


def files(*folders: str) -> list[Path]:
    """The modules of what is no part of the program."""
    return [path for folder in folders for path in sorted((TREE / folder).rglob("*.py"))]


def named(path: Path) -> set[str]:
    """All that a file imports, each module and name in full: `bench`, `bench.waits`, `bench.waits.LIMIT`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tops(path: Path) -> set[str]:
    """The folders that a file imports from."""
    return {"vagrant" if name.startswith("riglib") else name.partition(".")[0] for name in named(path)}


@pytest.mark.parametrize("folder", BESIDE)
def test_what_is_beside_the_program(folder: str) -> None:
    """The program imports none of it; measurements need no tests, and what both share knows neither."""
    beyond = {"migrator", "stages", *BESIDE, "tunnel"} - {folder, *ROOMS[folder]}
    assert {str(path.relative_to(TREE)): found for path in files(folder) if (found := tops(path) & beyond)} == {}
    assert [module for module, path in MODULES.items() if folder in tops(path)] == []


def test_no_test_imports_another() -> None:
    """What two of them need has a module that is named for what it holds. A conftest's fixtures pytest hands out."""
    tests = re.compile(r"tests\.(.+\.)?(test_\w+|conftest)$")
    assert {str(path.relative_to(TREE)): found for path in files(*BESIDE)
            if (found := {name for name in named(path) if tests.match(name)})} == {}


def test_no_import_circle() -> None:
    """Not even by an import in a function: who reads one of the two would have to read the other first."""
    left = {module: set(those) for module, those in IMPORTS.items()}
    while free := {module for module, those in left.items() if not those & left.keys()}:
        left = {module: those for module, those in left.items() if module not in free}
    circle = {module: those & left.keys() for module, those in left.items()}
    assert not circle


VERBS = {module for module in MODULES if re.match(r"stages\.\w+$", module)} - {"stages.steps"}


def test_a_command_is_no_part_of_another() -> None:
    """What two of them do is a step, or a module below; the list of commands alone knows the commands."""
    assert {module: those & VERBS for module, those in IMPORTS.items() if those & VERBS} == {}


def test_no_module_is_long() -> None:
    """What has more lines has more than one subject: also what tests share. A list of tests may be longer."""
    shared = {str(path.relative_to(TREE)): path for path in files(*BESIDE) if not path.name.startswith("test_")}
    lines = {name: len(path.read_text().splitlines()) for name, path in (MODULES | shared).items()}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_no_name_twice() -> None:
    """A command's module is called as the command; no other is called as another one, or as a folder."""
    names = collections.Counter(module.rpartition(".")[2] for module in MODULES
                                if not re.match(r"stages\.\w+$", module))
    assert [name for name, count in names.items() if count > 1 and name != "__main__"] == []
