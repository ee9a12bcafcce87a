# SPDX-License-Identifier: GPL-2.0-or-later
"""What the destination's answer can be."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.world import World

OK = "ok"
REFUSED = "refused"  # the one error that is the destination's last word: DumpRefused, AlreadyRuns, StoppedThere
TROUBLE = "trouble"  # any other error
UNKNOWN = "unknown"  # it has never heard of it: NoMigration, or an abandon that says so
LOST = "lost"  # no answer
Answers = Iterator[tuple[World, str]]
