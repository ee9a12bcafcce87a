# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes a container's own are, of any that lie in its cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.host import descent

INIT = 100


@pytest.mark.parametrize(("parents", "own"), [
    ({100: 1}, {100}), ({100: 1, 101: 100, 102: 101}, {100, 101, 102}), ({102: 101, 101: 100}, {100, 101, 102}),
    ({101: 1}, {100}), ({101: 0}, {100}), ({101: 99, 102: 101, 103: 100}, {100, 103}),
    ({101: 102, 102: 101, 103: 101}, {100}),  # read one after the other, and a number was given anew meanwhile
])
def test_who_descends(parents: dict[int, int], own: set[int]) -> None:
    assert descent.of(INIT, parents, lambda pid: parents.get(pid, 0)) == own


def test_each_is_asked_once() -> None:
    """Or a chain of ten thousand, as anybody in a container can make it, would keep it frozen for minutes."""
    asked: list[int] = []

    def parent_of(pid: int) -> int:
        asked.append(pid)
        return pid - 1

    assert len(descent.of(INIT, range(INIT + 10_000, INIT, -1), parent_of)) == 10_001
    assert len(asked) == 10_000


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that stands in for the first one, and a child of its own."""
    script = "import os, signal\nif os.fork(): os.write(1, b'.')\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as program:
        try:
            assert program.stdout and program.stdout.read(1) == b"."
            children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
            yield program.pid, int(children[0])
        finally:
            os.killpg(program.pid, 9)


def test_a_stranger_is_found(family: tuple[int, int]) -> None:
    init, child = family
    assert descent.stranger(init, [init, child, 0]) is None
    assert descent.stranger(init, [child, os.getpid()]) == os.getpid()


def test_what_ends_meanwhile_is_none(family: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert descent.stranger(family[0], [ended.pid]) is None
    looks: dict[int, int] = {}

    def parent(pid: int) -> int:
        """102 has ended between the look at its child and that at itself, and 100 has taken the child."""
        looks[pid] = looks.get(pid, 0) + 1
        return {101: 102 if looks[pid] == 1 else INIT}.get(pid, 0)

    monkeypatch.setattr(descent, "_parent", parent)
    assert descent.stranger(INIT, [102, 101]) is None


def test_more_than_can_be_looked_at_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "PROCESSES_MAX", 2)
    monkeypatch.setattr(descent, "_parent", {101: INIT, 102: INIT, 103: 1}.get)
    assert descent.stranger(INIT, [103, 101, 102]) is None
    assert descent.stranger(INIT, [101, 102, 103]) == 103
