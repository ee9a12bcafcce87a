# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that another command is working on, or none is."""

from __future__ import annotations

from migrator.errors import MigratorError


class BrokenOff(MigratorError):
    """No command is working on the migration {id} of {name}, which is {state}."""

    status = 32
    cure = "Continue with: {next} -- or give it up with: {rollback}"


class RolledBack(MigratorError):
    """The migration {id} of {name} was rolled back; the container stays on {source}."""

    status = 33
    cure = "Start over with: {next}"


class AbortElsewhere(MigratorError):
    """{name} is being moved here from {source}, which decides what happens to it."""

    status = 34
    cure = "Stop it there: {next}"




class Blocked(MigratorError):
    """{name} cannot be moved to {destination}: {findings}"""

    status = 30
    cure = "See each finding and its cure with: {check} -- accept one by name with --ignore CODE. {instead}"
