# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of whom a test says whether they have their root on btrfs, be there such processes or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.copies import forked
from migrator.host import roots


def are(monkeypatch: pytest.MonkeyPatch, told: Callable[[int], bool]) -> None:
    """By the id; who asks btrfs is given /proc/PID/root. What `told` raises is raised, as of what has ended.

    It is asked by this process itself, so that a test can note what is asked.
    """
    @contextlib.contextmanager
    def on_btrfs(pid: int) -> Iterator[Path | None]:
        yield Path(f"/proc/{pid}/root") if told(pid) else None

    monkeypatch.setattr(roots, "on_btrfs", on_btrfs)
    monkeypatch.setattr(forked, "_asked", lambda pids, question: (forked._one(pid, question) for pid in pids))
    monkeypatch.setattr(roots, "is_on_btrfs", lambda pid, *_: told(pid))
