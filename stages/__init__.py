# SPDX-License-Identifier: GPL-2.0-or-later
"""One module a command: its arguments, its work on this host, its answers on the other host, and its undo.

A module has NAME, HELP, a docstring that is its description, `add_arguments(parser)` and `run(args)`; the stages that
the other host takes part in also have HANDLERS (operation -> answer) and RECEIVERS (kind of data -> where it goes).
"""

from __future__ import annotations

from stages import (
    abort,
    agent,
    check,
    cleanup,
    create_dump,
    finish,
    import_data,
    migrate,
    peer,
    prepare_data,
    rendezvous,
    restore_dump,
    resume,
    rollback,
    serve,
    status,
    tunnel,
    wait,
)

ALL = (check, migrate, resume, prepare_data, import_data, create_dump, restore_dump, finish, rollback, status, wait,
       abort, cleanup, peer, tunnel, agent, rendezvous, serve)
