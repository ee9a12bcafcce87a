# SPDX-License-Identifier: GPL-2.0-or-later
"""One module a command: its arguments, its work on this host, its answers on the other host, and its undo.

A module has NAME, HELP, a docstring that is its description, `add_arguments(parser)`, `options(args)`, which makes a
frozen record of what was asked for, and `run(options)`, which takes it; the stages that the other host takes part in
also have HANDLERS (message -> answer) and RECEIVERS (transfer of a kind -> where it goes).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

COMMANDS = ("check", "migrate", "resume", "prepare-data", "import-data", "create-dump", "restore-dump", "finish",
            "rollback", "prepare-guest", "status", "wait", "abort", "cleanup", "peer", "tunnel", "agent",
            "rendezvous", "serve")


def load(command: str) -> ModuleType:
    """The module of one command. The others are not imported for it, so that most commands start in half the time."""
    return import_module(f"{__name__}.{command.replace('-', '_')}")


def load_all() -> tuple[ModuleType, ...]:
    """Every command's module, in the order of `migrator --help`."""
    return tuple(load(command) for command in COMMANDS)
