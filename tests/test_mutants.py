# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of the mutants of each module: it holds until that module's code changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import kept

MODULE = '"""What it is for."""\n\n\ndef f(x: int) -> int:\n    """Twice."""\n    return 2 * x  # as asked\n'


@pytest.mark.parametrize(("old", "new", "same"), [
    ("Twice", "Two times", True), ("  # as asked", "", True), ("for.", "for, in two\nlines.", True),
    ("2 * x", "3 * x", False), ('    """Twice."""\n', "    print(x)\n", False),
])
def test_comments_and_docstrings_do_not_count(old: str, new: str, same: bool) -> None:
    assert (kept.code(MODULE.replace(old, new)) == kept.code(MODULE)) is same


def test_all_modules_have_to_be_there_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "build" / "mutants.json"
    monkeypatch.setattr(kept, "TREE", tmp_path)
    monkeypatch.setattr(kept, "WHERE", {"a.py": ("*",), "b.py": ("*",)})
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(MODULE)
    assert kept.outdated(file=file) == ["a.py", "b.py"] and kept.whole(file=file) == []
    kept.add(["a.py"], [{"file": "a.py", "status": "killed"}], file=file)
    assert kept.outdated(file=file) == ["b.py"] and kept.whole(file=file) == []
    kept.add(["b.py"], [], file=file)
    assert kept.whole(file=file) == [{"file": "a.py", "status": "killed"}]
    (tmp_path / "a.py").write_text(MODULE.replace("2", "3"))
    assert kept.outdated(file=file) == ["a.py"] and kept.whole(file=file) == []
    kept.add(["a.py"], [{"file": "a.py", "status": "survived"}], file=file)
    assert kept.whole(file=file) == [{"file": "a.py", "status": "survived"}]
