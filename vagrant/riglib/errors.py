# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong in the rig, and the exit status of each cause."""


class RigError(Exception):
    """The rig failed; the message is one line, the hint says how to fix it."""

    status = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotRunning(RigError):
    """The rig, or the named host, is not running."""

    status = 4


class CommandFailed(RigError):
    """A program that the rig started failed."""

    status = 6


class Busy(RigError):
    """Another process holds the rig or the cache for longer than we wait."""

    status = 7
