# SPDX-License-Identifier: GPL-2.0-or-later
"""This host, its programs, and other commands on it."""

from __future__ import annotations

from migrator.errors import MigratorError


class NotRoot(MigratorError):
    """{command} needs root: it freezes processes and makes snapshots."""

    status = 10
    cure = "Run it as root, for example with sudo."


class ProgramMissing(MigratorError):
    """The program {program} is not installed."""

    status = 11
    cure = "Install it: apt-get install {package}"


class PackageMissing(MigratorError):
    """The Python package {module} cannot be imported: {reason}"""

    status = 12
    cure = "Install it: apt-get install {package}, in a virtual environment made with --system-site-packages."


class CommandFailed(MigratorError):
    """{command} failed with {outcome}: {output}"""

    status = 13
    cure = "Run it by hand to see more."


class CommandTimeout(MigratorError):
    """{command} did not end within {limit} seconds and was killed."""

    status = 14



class JournalBroken(MigratorError):
    """The journal {path} cannot be used: {reason}"""

    status = 15
    cure = ("If its disk is full (df -h {path}; df -i {path}), free up space there and run the command again."
            " Otherwise look at it with: sqlite3 -cmd 'PRAGMA locking_mode = EXCLUSIVE' {path} .dump -- and keep a copy"
            " of it before you change anything.")


class Busy(MigratorError):
    """Another migrator command is working on {name} (process {pid})."""

    status = 16
    cure = "Wait until it has ended, or see what it is doing with: migrator status {name}"


class StillUnderWay(MigratorError):
    """{command} (process {pid}) is still working on {name} after {seconds} seconds."""

    status = 17
    cure = "See what it is doing with: migrator status {name} -- and keep waiting with: migrator wait {name}"


class HolderUnknown(MigratorError):
    """{command} (process {pid}) is working on {name}, and does not respond to `migrator abort`."""

    status = 18
    cure = "Press Ctrl-C where it was started, or wait until it has ended: migrator wait {name}"
