# SPDX-License-Identifier: GPL-2.0-or-later
"""Which command comes next and on which host, written out so that it can be pasted."""

from __future__ import annotations

import shlex
import socket

from migrator.record.decisions import next_stage
from migrator.record.detail import Begun
from migrator.record.journal import Migration
from migrator.record.states import Role

NEEDS_DESTINATION = {"migrate", "prepare-data", "create-dump"}
BEGINS = {"migrate", "prepare-data"}


def command(stage: str, migration: Migration, *more: str) -> str:
    """`stage` as a command for `migration`; `stage` may say `@source` or `@destination`, `more` are options."""
    return written(stage, migration.role, migration.name, migration.peer, migration.begun, *more)


def typed(stage: str, migration: Migration, *more: str) -> str:
    """As `command`, for a sentence that says on which host."""
    return shlex.join([*words(stage, migration), *more])


def words(stage: str, migration: Migration) -> list[str]:
    """As `command`, as a list of words to be run on that host."""
    return _words(stage, migration.role, migration.name, migration.peer, migration.begun)


def path(migration: Migration) -> str:
    """`-P PATH` if it was given here, else "": for the ends of the commands in `errors`."""
    return shlex.join(words("status", migration)[3:])


def next_command(migration: Migration) -> str:
    """The command that continues a migration, or "" when it has ended."""
    stage = next_stage(migration.role, migration.state)
    return again(stage, migration) if stage else ""


def again(stage: str, migration: Migration) -> str:
    """As `command`, except that a migration begun by `migrator migrate` is continued by `migrator resume`."""
    if migration.begun.one_shot and not stage.startswith("rollback"):
        carries_on = migration.role is Role.SOURCE or stage == "restore-dump"
        stage = "resume" if carries_on else "resume@source"
    return command(stage, migration)


def anew(migration: Migration) -> str:
    """On the source: the command that moves it again after an attempt of `migrator migrate` was given up."""
    return written("migrate", Role.SOURCE, migration.name, migration.peer, migration.begun)


def back(migration: Migration) -> str:
    """For the source of a container that has moved away: the command, typed on the other host, that brings it back.

    The LXC path there is always spelled out, because this host does not know whether it is the other one's default. Nor
    does it know under which name a paired host knows this one.
    """
    paired = migration.peer.startswith("peer:")
    begun = Begun(other_name=migration.name, source_lxcpath=migration.begun.destination_lxcpath, lxcpath_given=True)
    path = ["--destination-lxcpath", str(migration.lxcpath)] if migration.begun.lxcpath_given else []
    text = written("migrate", Role.SOURCE, migration.other_name, "peer:NAME" if paired else this_host(), begun,
                   *path)
    return f"{text}   (NAME is what this host is called there: migrator peer list)" if paired else text


def written(stage: str, role: Role, name: str, peer: str, begun: Begun, *more: str) -> str:
    """As `command`, from the individual facts."""
    text = shlex.join([*_words(stage, role, name, peer, begun), *more])
    if _on_source(stage, role) == (role is Role.SOURCE):
        return text
    return f"{text}   (on {_other_host(role, peer, begun)})"


def _on_source(stage: str, role: Role) -> bool:
    place = stage.partition("@")[2]
    return role is Role.SOURCE if not place else place == "source"


def _words(stage: str, role: Role, name: str, peer: str, begun: Begun) -> list[str]:
    verb, on_source = stage.partition("@")[0], _on_source(stage, role)
    other_name, here = begun.other_name or name, on_source == (role is Role.SOURCE)
    words = ["migrator", verb, name if here else other_name]
    path = begun.source_lxcpath if on_source else begun.destination_lxcpath
    if path and (not here or begun.lxcpath_given):  # whether it is the other host's default is not known here
        words += ["-P", path]
    if verb in NEEDS_DESTINATION:
        words += ["-d", peer if role is Role.SOURCE else begun.destination]
    if verb in BEGINS and other_name != name:
        words += ["--new-name", other_name if role is Role.SOURCE else name]
    return words


def other_host(migration: Migration) -> str:
    """The other host's name, as people call it."""
    return _other_host(migration.role, migration.peer, migration.begun)


def _other_host(role: Role, peer: str, begun: Begun) -> str:
    return begun.destination_host or peer if role is Role.SOURCE else peer


def moved_to(migration: Migration) -> str:
    """Where a container has moved, as seen from the host it left: the host, and its name there if different."""
    host = other_host(migration)
    return host if migration.other_name == migration.name else f"{host} as {migration.other_name}"


def this_host() -> str:
    return socket.gethostname()
