# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may let the container run."""

from __future__ import annotations

from migrator.errors import MigratorError


class SourceNeeded(MigratorError):
    """{known} What is left to do must be done on {source}, which could not be told: {reason}"""

    status = 66
    cure = "Type there: {next}"


class WordOver(MigratorError):
    """The source's word that {name} may be let run here is over: this host, or this program, stood still meanwhile."""

    status = 36
    cure = "Again, the source is asked once more: {next}"


class SourceFailed(MigratorError):
    """{source} was told to go on with {name}, and could not: {reason}"""

    status = 68
    cure = "See there: {next}"


class TwoCopies(MigratorError):
    """THERE ARE TWO COPIES OF {name}: it has run on {destination}, and its rollback was forced on {source}."""

    status = 69
    cure = """Keep one of them. To give up the one on {destination}, type there: lxc-stop -k -P {lxcpath} {there} -- and
    then: migrator resume {there} {path}"""


class ForceRefused(MigratorError):
    """{name} is not {done} by force: {reason}. {risk}"""

    status = 67
    cure = "Only when that is certain: {command}"
