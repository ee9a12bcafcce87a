# SPDX-License-Identifier: GPL-2.0-or-later
"""The freeze, the dump and the restore."""

from __future__ import annotations

import socket
from typing import Any

from migrator.errors import MigratorError


class NamesLog:
    """An error that names the host which has the log."""

    def __init__(self, /, **fields: Any) -> None:
        super().__init__(**{"host": socket.gethostname()} | fields)


class WatchdogFailed(MigratorError):
    """Nothing would resume the container if this program were killed or stopped: its watchdog did not start
    ({reason})."""

    status = 59
    cure = """The container keeps running. Find out what prevents a second program from starting here, then run the
        command again."""


class GuestNotReady(MigratorError):
    """{name} could not be made ready for the dump, at {target}: {reason}"""

    status = 91
    cure = """The container keeps running. See what keeps it from being moved: migrator prepare-guest {name}"""


class FreezeFailed(MigratorError):
    """The container {name} did not freeze within {limit} seconds."""

    status = 60
    cure = "A process in uninterruptible sleep may be holding it up: ps -eo pid,stat,wchan,cmd | grep ' D'"



class DumpFailed(NamesLog, MigratorError):
    """CRIU could not dump {name}: {reason}"""

    status = 61
    cure = "The whole log is {log} on {host}."


class RestoreFailed(NamesLog, MigratorError):
    """{name} could not be restored: {reason}"""

    status = 62
    cure = "The whole log is {log} on {host}."


class DowntimeExceeded(MigratorError):
    """{name} was down for {seconds} seconds, longer than --max-downtime allows."""

    status = 63
    cure = "Raise --max-downtime, or send the data again first so that less remains to be sent."


class DumpRefused(MigratorError):
    """The destination does not take over {name}: {reason}."""

    status = 64
    cure = "Its dump must be sent again."


class StartFailed(MigratorError):
    """{name} could not be started: {reason}"""

    status = 65
    cure = "The whole log is {log}."


class CopyNotEnded(MigratorError):
    """Processes of the copy of {name} that stayed here are still alive in {place}: {pids}."""

    status = 88
    cure = "See what is holding them up: ps -o pid,stat,wchan,cmd -p {pids} -- once they have ended: {next}"
