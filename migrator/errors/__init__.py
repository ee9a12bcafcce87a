# SPDX-License-Identifier: GPL-2.0-or-later
"""Every error that a user can meet: a class each, with its message, its cure and its exit status.

The docstring of a class is its message and `cure` tells what to do; both are filled in with the fields that the error
was raised with. Here are the exit statuses and what all errors are made of; each module has those of one subject, and
docs/errors.md the table of all, made from them.

Exit statuses
    0       done
    1       done, with warnings (`check`)
    2       wrong usage, or an error without a number of its own
    3-5     a stage failed after it had frozen (or stopped) the container; the number tells where the container is now
    10-99   one cause each (70-89: the tunnel); the container runs (or is where it was before the command)
    128+N   ended by signal N
"""

from __future__ import annotations

from migrator.errors.documented import DocumentedError

EXIT_OK = 0
EXIT_WARNINGS = 1
EXIT_USAGE = 2
SIGNAL_BASE = 128


class MigratorError(DocumentedError):
    """{reason}"""


class UsageError(MigratorError):
    """{reason}"""


class InternalError(MigratorError):
    """Internal error: {reason}"""

    cure = "Run the command again with --debug and report what it prints."


class Interrupted(DocumentedError):
    """Interrupted by {signal}."""

    # Not a MigratorError: code that goes on after one of those, as too minor to stop for, must not after this one.

    @property
    def exit_status(self) -> int:
        return SIGNAL_BASE + int(self.fields.get("number", 2))
