# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn what has arrived on this host into a stopped container.

The stream is checked segment by segment against its digests and received into a read-only subvolume, and the
container is defined with its configuration adapted to this host, fenced against being started until it is handed over.
Next comes `migrator create-dump` on the source, or another round of prepare-data if much has changed in the meantime.
"""

from __future__ import annotations

import argparse
import dataclasses

from migrator.base.result import Result
from migrator.record.decisions import Verdict
from migrator.record.migration_paths import Layout
from migrator.remote.answering import Handlers, Service
from migrator.transfer.messages import Done, Import
from stages.steps import arguments, import_round, prologue
from stages.steps.options import NamedContainer

NAME = "import-data"
HELP = "receive the disk that has arrived (on the destination)"


@dataclasses.dataclass(frozen=True)
class ImportDataOptions:
    container: NamedContainer
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> ImportDataOptions:
    return ImportDataOptions(arguments.container(args), args.dry_run)


def run(options: ImportDataOptions) -> Result:
    arguments.require_root(NAME)
    with prologue.working_on(options.container) as journal:
        migration = prologue.arrived(journal, options.container, NAME)
        decision = prologue.require_turn(NAME, migration)
        if decision.verdict is Verdict.ALREADY:
            return prologue.already(NAME, migration, f"{migration.name} has already been imported.",
                                    prologue.next_command(migration, decision))
        if options.dry_run:
            return import_round.described(migration)
        return import_round.import_round(migration, Layout.of(migration))


# --- for a source that does all at once -----------------------------------------------------------------------


def import_(service: Service, asked: Import) -> Done:
    """import-data over the source's own connection."""
    migration = service.migration(asked.id)
    if prologue.require_turn(NAME, migration).verdict is Verdict.GO:
        service.refuse_more(migration)
        import_round.import_round(migration, Layout.of(migration), service.behind)
    return Done(state=migration.state)


HANDLERS: Handlers = {Import: import_}
