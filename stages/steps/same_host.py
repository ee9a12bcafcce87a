# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration continues with the host that it began with and no other, because every record names that one.

If another were accepted, a forced rollback would check whether the first is silent while the other runs the container.
"""

from __future__ import annotations

from migrator.copies import resume_rules
from migrator.errors.containers import AlreadyMigrating, NotKnownThere
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.remote.other_host import fingerprint
from migrator.transfer.messages import MigrationState
from migrator.transfer.rpc import Connection


def require(destination: str, migration: Migration, there: Connection, answer: MigrationState) -> None:
    """Before a round is sent to this destination; `answer` is that host's reply to `state`.

    Raises AlreadyMigrating if a host other than the recorded one was given, and NotKnownThere if another answers for
    it.
    """
    same_address = destination == migration.peer
    if not resume_rules.is_recorded_host(
        migration.ticket, answer.ticket, migration.begun.destination_fingerprint,
        fingerprint(there), same_place=same_address and there.peer_host == migration.begun.destination_host,
    ):
        if same_address:
            raise NotKnownThere(destination=there.peer_host, id=migration.id, name=migration.name, peer=migration.peer)
        raise AlreadyMigrating(name=migration.name, peer=migration.peer, id=migration.id,
                               next=next_commands.next_command(migration), path=next_commands.path(migration))
