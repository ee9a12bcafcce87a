# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may let the container run."""

from __future__ import annotations

from migrator.errors import MigratorError


class SourceNeeded(MigratorError):
    """{known} The rest must be done on {source}, which could not be told: {reason}"""

    status = 66
    cure = "Run there: {next}"


class WordOver(MigratorError):
    """The source's permission to run {name} here has expired: this host, or this program, was suspended meanwhile."""

    status = 36
    cure = "Run the command again, which asks the source once more: {next}"


class SourceFailed(MigratorError):
    """{source} was told to continue with {name}, but could not: {reason}"""

    status = 68
    cure = "See what happened there: {next}"


class TwoCopies(MigratorError):
    """THERE ARE TWO COPIES OF {name}: it has run on {destination}, and its rollback was forced on {source}."""

    status = 69
    cure = """Keep one of them. To give up the one on {destination}, run there: lxc-stop -k -P {lxcpath} {there} -- and
        then: migrator resume {there} {path}"""


class ForceRefused(MigratorError):
    """{name} is not {done} by force: {reason}. {risk}"""

    status = 67
    cure = "Only if you are certain of that: {command}"
