# SPDX-License-Identifier: GPL-2.0-or-later
"""A hook for migrator in the rig's hosts, never part of it: it holds a process at a record of its journal.

It lies in the hosts' site-packages beside a .pth file that imports it in every program of that environment, and does
nothing where the folder FOLDER is not there. A file FOLDER/NAME that says `MOMENT ROLE STEP PHASE NUMBER` stops the
process that makes this record of the container NAME's migration, the NUMBERth of its kind there, `before` it is made
or `after`. The process then renames that file to FOLDER/NAME.reached, with its process id in it, and waits until that
is gone. Only the thread that records waits: the connection's signs of life go on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path("/run/migrator-pause")
POLL = 0.05


def _wait(migration: Any, moment: str, step: str, phase: str) -> None:
    wish = FOLDER / migration.name
    try:
        text = wish.read_text()
    except OSError:
        return
    made = sum(1 for event in migration.events() if (event.step, event.phase) == (step, phase))
    number = made + 1 if moment == "before" else made
    if text.split() != [moment, str(migration.role), step, phase, str(number)]:
        return
    wish.write_text(str(os.getpid()))
    reached = wish.with_name(f"{migration.name}.reached")
    wish.rename(reached)
    while reached.exists():
        time.sleep(POLL)


def _install() -> None:
    from migrator.record import journal

    write, event = journal.Migration._write, journal.Migration._event

    def paused_write(self: Any, state: Any, owner: Any, step: str, phase: str, detail: dict[str, Any],
                     **how: Any) -> None:
        _wait(self, "before", step, phase)
        write(self, state, owner, step, phase, detail, **how)
        _wait(self, "after", step, phase)

    def paused_event(self: Any, step: str, phase: str, detail: dict[str, Any]) -> None:
        _wait(self, "before", step, phase)
        event(self, step, phase, detail)
        _wait(self, "after", step, phase)

    create = journal.Journal.create

    def paused_create(self: Any, *, event: Any, **given: Any) -> Any:
        """Its first record is made with the migration itself: there is none to be held before it."""
        made = create(self, event=event, **given)
        _wait(made, "after", str(event), "done")
        return made

    journal.Journal.create = paused_create  # type: ignore[method-assign]
    journal.Migration._write = paused_write  # type: ignore[method-assign]
    journal.Migration._event = paused_event  # type: ignore[method-assign]


if FOLDER.is_dir():
    _install()
