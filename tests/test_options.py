# SPDX-License-Identifier: GPL-2.0-or-later
"""What was typed is a record as soon as it has been parsed, and nothing changes it or hands the parser's own around."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import stages
from migrator import cli

TREE = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(TREE) for top in ("migrator", "stages") for path in (TREE / top).rglob("*.py"))
# Of the command line itself, and of the arguments that commands share.
PARSE = {Path("migrator/cli.py"), Path("migrator/manual.py"), Path("stages/steps/arguments.py")}

TYPED = [
    ["check", "web"], ["check", "web", "-d", "hostb", "--map-bridge", "a=b", "--ignore", "x"],
    ["migrate", "web", "-d", "hostb"], ["resume", "web", "--ignore", "x"], ["resume", "--all", "--at-boot"],
    ["prepare-data", "web", "-d", "hostb"], ["import-data", "web"], ["create-dump", "web", "-d", "hostb"],
    ["restore-dump", "web"], ["finish", "web"], ["rollback", "web"], ["status"], ["wait", "web"], ["abort", "web"],
    ["cleanup"], ["cleanup", "web", "--keep-copy"], ["tunnel", "ping", "hostb"], ["tunnel", "bench", "hostb"],
    ["prepare-guest", "web", "--yes"], ["tunnel", "status"], ["agent"], ["rendezvous"], ["serve"],
    ["peer", "invite", "--name", "hostb", "--allow", "receive", "--rendezvous", "wss://r"],
    ["peer", "join", "--name", "hostb"], ["peer", "join", "7-velvet-harbor", "--name", "hostb"],
    ["peer", "add", "hostb"], ["peer", "allow", "hostb", "receive", "--lxcpath", "/pool"], ["peer", "list"],
    ["peer", "show"], ["peer", "show", "hostb"], ["peer", "rename", "hostb", "attic"], ["peer", "remove", "hostb"],
    ["peer", "exchange"],
]


def functions_that_see_it(tree: ast.Module) -> set[str]:
    """The functions that name argparse's namespace; "" for code outside of any."""
    found = set()
    for statement in tree.body:
        if "argparse.Namespace" in ast.unparse(statement):
            found.add(statement.name if isinstance(statement, ast.FunctionDef) else "")
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_namespace_is_seen_where_it_is_made_a_record(module: Path) -> None:
    text = (TREE / module).read_text()
    assert "getattr(args" not in text and "setattr(args" not in text
    if module not in PARSE:
        assert functions_that_see_it(ast.parse(text)) <= {"options"}


def test_these_are_all_commands() -> None:
    assert {argv[0] for argv in TYPED} == set(stages.COMMANDS)


@pytest.mark.parametrize("argv", TYPED, ids=" ".join)
def test_a_record_cannot_be_changed(argv: list[str]) -> None:
    """Nor can what is in it: parts are frozen records too, and lists are tuples."""
    options = cli.parse(argv).options
    parts: list[object] = [options]
    for part in parts:
        assert not isinstance(part, list | dict | set), f"{part} of {options}"
        if isinstance(part, tuple):
            parts += part
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            names = [field.name for field in dataclasses.fields(part)]
            for name in names:
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(part, name, None)
            parts += [getattr(part, name) for name in names]
    assert dataclasses.is_dataclass(options)
