# SPDX-License-Identifier: GPL-2.0-or-later
"""What `tests.model` knows of both hosts at one moment, and what must hold in each."""

from __future__ import annotations

from typing import NamedTuple

from migrator.copies.origins import Whose
from migrator.record.states import Owner, State, owner

S = State
RUNS, FROZEN, STOPPED = "runs", "frozen", "stopped"
RAN_THERE = {S.RESTORED, S.FINISHED}


class Message(NamedTuple):
    request: str
    attempt: int  # 0 where the request does not carry it


class World(NamedTuple):
    """Both journals, where the programs stand, what may still arrive, and what the container really does."""

    source: State | None = None
    attempt: int = 0
    forced: bool = False
    here: str = RUNS
    fenced_here: bool = False
    past: bool = False  # somebody has thawed it there, or taken its fence away, while it was to stand still
    program: str = ""  # that runs on the source
    step: int = 0
    waiting: bool = False  # for the answer to the call at `step`
    destination: State | None = None
    attempt_there: int = 0
    word: bool = False  # of the source, that it may be let run there, still holds (`migrator.copies.leave`)
    images: int = 0  # of which attempt all of them lie there
    restoring: bool = False  # a restore or start is under way on the destination, and has the container locked
    mark: bool = False  # that it may have run there; see `migrator.criu.ran_mark`
    there: str = STOPPED
    monitor: bool = True  # LXC's, of what runs there: without it LXC says that it is stopped
    had_stopped: bool = False  # in the boot in which it was let run there; see `after_crash.has_stopped`
    fenced_there: bool = True  # or not there at all
    place: Whose = Whose.NOBODYS  # what is where the container is put there
    given_way: bool = False  # it had run there, and the destination knows that the source goes on with its own
    put_back: bool = False  # what has given way is in its place again, and nothing keeps it from being started
    away: bool = False  # the disk with the LXC path there: what lies on it stays as it is
    gone: bool = False  # the destination, as far as anybody can tell
    forgot: bool = False  # its journal is lost
    flying: frozenset[Message] = frozenset()  # sent, and may arrive at any time, any number of times

    @property
    def source_owner(self) -> Owner:
        return owner(self.source) if self.source else Owner.SOURCE

    @property
    def destination_owner(self) -> Owner:
        return owner(self.destination) if self.destination and not self.given_way else Owner.SOURCE

    @property
    def idle(self) -> bool:
        return not self.program and not self.restoring

    @property
    def restorable(self) -> bool:
        return bool(self.images) and self.place.may_go

    @property
    def stands_fenced(self) -> bool:
        """It has run there, or may have, and does not: see `stages.steps.settling.stands_fenced`."""
        return self.destination is S.RESTORED and self.there == STOPPED and self.fenced_there and self.place.may_go

    @property
    def stands_stopped(self) -> bool:
        """The same, or it has lost its fence: see `stages.steps.settling.stands_stopped`."""
        return self.stands_fenced or (self.must_choose and self.there == STOPPED)

    @property
    def is_stopped(self) -> bool:
        """It has run there and does not now, fenced or not: see `stages.steps.stopped_here`."""
        return self.destination is S.RESTORED and self.there == STOPPED and not self.has_left

    @property
    def must_choose(self) -> bool:
        """It may never have run there, and the source's memory may be worth more: see `stages.steps.settling`."""
        return self.had_stopped and self.destination is S.RESTORED

    @property
    def has_left(self) -> bool:
        """It has run there, and is not in its place any more: see `stages.steps.settling.has_left`."""
        return self.destination is S.RESTORED and not self.place.may_go

    @property
    def is_back(self) -> bool:
        """What has given way is in use again: see `stages.steps.gave_way`."""
        return self.given_way and self.place.may_go and (self.there == RUNS or not self.fenced_there)

    @property
    def may_run_here(self) -> bool:
        """It runs, or whoever likes can start it."""
        return self.here == RUNS or (self.here == STOPPED and not self.fenced_here)

    @property
    def may_run_there(self) -> bool:
        return not self.gone and (self.there == RUNS or not (self.fenced_there or self.away))


STRANGER = "somebody "  # begins the labels of what others do to containers
REBOOTED = "the destination is rebooted"
POWER_CUT = "a power cut brings back what the destination has put aside"


def check(world: World) -> None:
    """What must hold in every world."""
    assert not (world.here == RUNS and world.there == RUNS and not world.gone), "two copies run"
    assert not (world.may_run_here and world.may_run_there), "one runs, and nothing keeps the other from being started"
    both = world.source_owner is Owner.SOURCE and world.destination_owner is Owner.DESTINATION
    assert not both or world.forced, "two owners"
    if world.may_run_here and not world.past:
        assert world.source_owner is Owner.SOURCE, "it may run on the source, which does not have the token"
    if world.may_run_there and not (world.forgot or world.put_back):
        assert world.destination_owner is Owner.DESTINATION, "it may run on the destination without the token"
    if world.source in (S.FINISHING, S.FINISHED):
        assert world.forgot or world.destination in RAN_THERE, \
            "the source's copy is ended, and it has never run on the destination"
        assert not (world.destination is S.RESTORED and world.place is not Whose.OURS) and not world.given_way, \
            "the last copy is ended"
        assert not world.had_stopped, "the source's memory is ended, and it may never have run on the destination"
    if world.source is S.ROLLED_BACK and not world.program:
        assert world.may_run_here, "rolled back, and it can run nowhere"


def check_move(world: World, label: str, reached: World) -> None:
    """What must hold of everything that our programs do."""
    if world.place is Whose.FOREIGN and not label.startswith(STRANGER):
        assert reached.place is Whose.FOREIGN, "somebody else's container was removed or taken over"
        assert reached.there == STOPPED, "somebody else's container was taken for the one that is restored"
    if world.mark and world.place is Whose.OURS and not (world.restoring or label.startswith(STRANGER)):
        known = reached.forgot or reached.destination in (S.RESTORING, *RAN_THERE)
        assert known or world.destination is not S.RESTORING, "what may have run is given up"
        assert reached.place is Whose.OURS or not reached.mark, "what may have run is removed"
        overwritten = world.destination is S.OWNED and reached.destination is S.RESTORING
        assert not (overwritten and reached.mark), "what may have run is overwritten"
    if world.there == RUNS and world.mark and not (world.restoring or label == REBOOTED or label.startswith(STRANGER)):
        assert reached.there == RUNS, "what runs there is ended"
