# SPDX-License-Identifier: GPL-2.0-or-later
"""What `resume` reports about one migration, on either host."""

from __future__ import annotations

from migrator.base.result import Result
from migrator.copies import after_crash
from migrator.record.journal import Migration

STAGE = "resume"


def result(migration: Migration, text: str, *, already: bool = False) -> Result:
    return Result({"migration": migration.id, "name": migration.name, "stage": STAGE, "already": already,
                   "state": migration.state}, text)


def ended(migration: Migration) -> Result:
    return result(migration, f"The migration of {migration.name} has ended ({migration.state}): there is nothing to "
                             f"continue. {after_crash.in_use_note(migration)}".rstrip(), already=True)


