# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each module's mutants when they were last run, so that one that has changed can be run by itself.

A module's results hold as long as its code does, comments and docstrings aside. (Other modules and tests may change
meanwhile: `make test-all` runs all of it again.)
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

from tests.mutants.where import WHERE

TREE = Path(__file__).resolve().parents[2]
FILE = TREE / "build" / "mutants.json"


def code(source: str) -> str:
    """A digest of what a module does."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and ast.get_docstring(node) is not None):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def add(files: list[str], found: list[dict[str, Any]], *, file: Path = FILE) -> None:
    """Keep the results of these modules in the place of earlier ones."""
    known = _read(file)
    for each in files:
        known[each] = {"code": code((TREE / each).read_text()), "mutants": [of for of in found if of["file"] == each]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1))


def whole(*, file: Path = FILE) -> list[dict[str, Any]]:
    """The results of all modules, each as it is; nothing while those of one are missing."""
    known = _read(file)
    if outdated(file=file):
        return []
    return [mutant for each in WHERE for mutant in known[each]["mutants"]]


def outdated(*, file: Path = FILE) -> list[str]:
    """The modules that have to be run for `whole`."""
    known = _read(file)
    return [each for each in WHERE if each not in known or known[each]["code"] != code((TREE / each).read_text())]


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.exists() else {}
