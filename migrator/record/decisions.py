# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a stage may run, which one comes next, and what is missing: pure functions of the states of both hosts."""

from __future__ import annotations

import dataclasses
import enum

from migrator.record.states import ENDED, Role, State

S = State


class Verdict(enum.Enum):
    GO = "go"
    ALREADY = "already"
    REFUSE = "refuse"


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether a stage may run; if not, what is missing, and which command comes next on which host."""

    verdict: Verdict
    missing: str = ""
    next_stage: str = ""


GO = Decision(Verdict.GO)
GIVEN_UP = Decision(Verdict.REFUSE, "the destination has given the migration up", "rollback")  # its last step is left


def _already(next_stage: str) -> Decision:
    return Decision(Verdict.ALREADY, next_stage=next_stage)


def _refuse(missing: str, next_stage: str) -> Decision:
    return Decision(Verdict.REFUSE, missing, next_stage)


# Which command comes next, by the state of the host being looked at. `@destination` and `@source` say where to run it.
NEXT: dict[tuple[Role, State], str] = {
    (Role.SOURCE, S.PREPARING): "prepare-data",
    (Role.SOURCE, S.PREPARED): "import-data@destination",
    (Role.SOURCE, S.DUMPING): "create-dump",
    (Role.SOURCE, S.OFFERED): "create-dump",
    (Role.SOURCE, S.DUMPED): "restore-dump@destination",
    (Role.SOURCE, S.FINISHING): "finish",
    (Role.SOURCE, S.ROLLING_BACK): "rollback",
    (Role.DESTINATION, S.RECEIVING): "prepare-data@source",
    (Role.DESTINATION, S.RECEIVED): "import-data",
    (Role.DESTINATION, S.IMPORTING): "import-data",
    (Role.DESTINATION, S.IMPORTED): "create-dump@source",
    (Role.DESTINATION, S.RECEIVING_DUMP): "create-dump@source",
    (Role.DESTINATION, S.DUMP_RECEIVED): "create-dump@source",
    (Role.DESTINATION, S.OWNED): "restore-dump",
    (Role.DESTINATION, S.RESTORING): "restore-dump",
    (Role.DESTINATION, S.RESTORED): "finish@source",
    (Role.DESTINATION, S.ABANDONING): "rollback@source",
}


def next_stage(role: Role, state: State) -> str:
    """The command that continues a migration, with `@source` or `@destination` if it belongs there; "" once ended."""
    return NEXT.get((role, state), "")


def decide(stage: str, here: State | None, there: State | None = None) -> Decision:
    """May `stage` run on the host where it belongs, whose state is `here`? `there` is the other host's, if known.

    The answer is GO, ALREADY (it has succeeded before, so doing nothing is right) or REFUSE with what is missing.
    """
    return _DECIDERS[stage](here, there)


def step(here: State | None, there: State | None) -> str:
    """The stage that continues a migration, for a driver that knows both states; "" once it has ended.

    It leads forward unless the destination has given up. `decide` agrees with it for that stage.
    """
    if here in ENDED:
        return ""
    if here is S.FINISHING:
        return "finish"
    if here is S.ROLLING_BACK or there in (S.ABANDONING, S.ABANDONED):
        return "rollback"
    if here in (S.OFFERED, S.DUMPED):
        if there in (S.RESTORED, S.FINISHED):
            return "finish"
        if there in (S.OWNED, S.RESTORING):
            return "restore-dump"
        return "create-dump" if here is S.OFFERED and there in (S.RECEIVING_DUMP, S.DUMP_RECEIVED) else "rollback"
    if here is S.DUMPING:
        return "create-dump"
    if here is S.PREPARED and there in (S.RECEIVED, S.IMPORTING):
        return "import-data"
    if here is S.PREPARED and there in (S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED):
        return "create-dump"
    return "prepare-data"


def _prepare_data(here: State | None, there: State | None) -> Decision:
    if here is None or here in ENDED:
        return GO
    if there in (S.ABANDONING, S.ABANDONED):
        return GIVEN_UP
    if here is S.PREPARING:
        return GO
    if here is S.PREPARED:
        if there in (S.RECEIVED, S.IMPORTING):
            return _already("import-data@destination")
        if there in (S.RECEIVING, S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED, None):
            return GO  # RECEIVING: what was received turned out to be damaged
    return _refuse(f"the migration is past it (state {here})", next_stage(Role.SOURCE, here) or "status")


def _import_data(here: State | None, _there: State | None) -> Decision:
    if here is None:
        return _refuse("no data has arrived", "prepare-data@source")
    if here in (S.ABANDONING, S.ABANDONED):
        return _refuse("the migration was given up", "rollback@source")
    if here in (S.RECEIVED, S.IMPORTING):
        return GO
    if here is S.RECEIVING:
        return _refuse("the data has not arrived completely", "prepare-data@source")
    return _already(next_stage(Role.DESTINATION, here))


def _create_dump(here: State | None, there: State | None) -> Decision:
    if here is None or here in ENDED:
        return _refuse("the data has not been sent", "prepare-data")
    if here is S.PREPARING:
        return _refuse("the data has not been sent completely", "prepare-data")
    if there in (S.ABANDONING, S.ABANDONED):
        return GIVEN_UP
    if here is S.DUMPED:
        return _already("restore-dump@destination")
    if here is S.OFFERED:
        if there in (S.OWNED, S.RESTORING):
            return _already("restore-dump@destination")
        if there in (S.RESTORED, S.FINISHED):
            return _already("finish")
        if there in (S.RECEIVING_DUMP, S.DUMP_RECEIVED):
            return GO  # the offer got lost and is made again
        return GIVEN_UP
    if here not in (S.PREPARED, S.DUMPING):  # it was killed after DUMPING: it thaws and starts over
        return _refuse(f"the migration is in state {here}", next_stage(Role.SOURCE, here) or "status")
    if there in (S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED):
        return GO
    if there in (S.RECEIVED, S.IMPORTING):
        return _refuse("the data that was sent has not been imported", "import-data@destination")
    return _refuse("the destination does not have the data", "prepare-data")


def _restore_dump(here: State | None, _there: State | None) -> Decision:
    if here in (S.DUMP_RECEIVED, S.OWNED, S.RESTORING):  # DUMP_RECEIVED: the offer came, but taking it was not recorded
        return GO
    if here in (S.RESTORED, S.FINISHED):
        return _already("finish@source")  # also if this host had ended it alone and the source has come back
    if here is None:
        return _refuse("no dump has arrived", "prepare-data@source")
    if here in (S.ABANDONING, S.ABANDONED):
        return _refuse("the migration was given up", "rollback@source")
    if here in (S.RECEIVING_DUMP, S.IMPORTED):
        return _refuse("no complete dump has arrived", "create-dump@source")
    return _refuse(f"no dump has arrived (state {here})", next_stage(Role.DESTINATION, here))


def _finish(here: State | None, there: State | None) -> Decision:
    if here is None or here is S.ROLLED_BACK:
        return _refuse("nothing has been migrated", "prepare-data")
    if here is S.FINISHED:
        return _already("")
    if here is S.FINISHING:
        return GO
    if here in (S.OFFERED, S.DUMPED):
        if there in (S.RESTORED, S.FINISHED):  # with OFFERED: the offer was taken and only the answer got lost
            return GO
        if there in (S.ABANDONING, S.ABANDONED):
            return GIVEN_UP
        if here is S.OFFERED:
            return _refuse("whether it was handed over is unknown", "rollback")
        return _refuse("it does not run on the destination yet", "restore-dump@destination")
    return _refuse(f"it has not been handed over (state {here})", next_stage(Role.SOURCE, here))


def _rollback(here: State | None, there: State | None) -> Decision:
    if here is None:
        return _refuse("nothing has been migrated", "prepare-data")
    if here is S.ROLLED_BACK:
        return _already("prepare-data")
    if here is S.FINISHED or here is S.FINISHING or there in (S.RESTORED, S.FINISHED):
        return _refuse("it already runs on the destination", "finish" if here is not S.FINISHED else "status")
    return GO


_DECIDERS = {
    "prepare-data": _prepare_data,
    "import-data": _import_data,
    "create-dump": _create_dump,
    "restore-dump": _restore_dump,
    "finish": _finish,
    "rollback": _rollback,
}
