# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that others work on, or nobody."""

from __future__ import annotations

from migrator.errors import MigratorError


class BrokenOff(MigratorError):
    """Nobody works on the migration {id} of {name}, which is {state}."""

    status = 32
    cure = "Go on with: {next} -- or give it up with: {rollback}"


class RolledBack(MigratorError):
    """The migration {id} of {name} was rolled back; the container stays on {source}."""

    status = 33
    cure = "Begin anew with: {next}"


class AbortElsewhere(MigratorError):
    """{name} is being moved here from {source}, which decides what becomes of it."""

    status = 34
    cure = "Stop it there: {next}"




class Blocked(MigratorError):
    """{name} cannot be moved to {destination}: {findings}"""

    status = 30
    cure = "See each finding and its cure with: {check} -- accept one by name with --ignore CODE. {instead}"
