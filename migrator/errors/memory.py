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
    """Nothing would give the container back if this program were stopped: its watchdog did not start ({reason})."""

    status = 59
    cure = "The container runs on. Find out what keeps a second program from being started here, then type it again."


class FreezeFailed(MigratorError):
    """The container {name} did not freeze within {limit} seconds."""

    status = 60
    cure = "A process in uninterruptible sleep may hold it up: ps -eo pid,stat,wchan,cmd | grep ' D'"



class DumpFailed(NamesLog, MigratorError):
    """CRIU could not dump {name}: {reason}"""

    status = 61
    cure = "The whole log is {log} on {host}."


class RestoreFailed(NamesLog, MigratorError):
    """{name} could not be restored: {reason}"""

    status = 62
    cure = "The whole log is {log} on {host}."


class DowntimeExceeded(MigratorError):
    """{name} stood still for {seconds} seconds, longer than --max-downtime allows."""

    status = 63
    cure = "Raise --max-downtime, or send the data again first so that less is left."


class DumpRefused(MigratorError):
    """The destination does not take {name} over: {reason}."""

    status = 64
    cure = "Its dump must be sent again."


class StartFailed(MigratorError):
    """{name} could not be started: {reason}"""

    status = 65
    cure = "The whole log is {log}."


class CopyNotEnded(MigratorError):
    """Of the copy of {name} that was left here processes still live in {place}: {pids}."""

    status = 88
    cure = "See what holds them: ps -o pid,stat,wchan,cmd -p {pids} -- when they have ended: {next}"
