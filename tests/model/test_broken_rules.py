# SPDX-License-Identifier: GPL-2.0-or-later
"""That the search through the model finds errors: each rule is broken once (docs/model.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from migrator.copies.origins import Whose
from migrator.copies.resume_rules import LETS_RUN, MAY_RESTORE
from migrator.record import states
from migrator.record.states import Event, State
from tests.model import (
    around,
    destination_answers,
    destination_commands,
    programs,
    reply,
    source_programs,
    source_word,
)
from tests.model.explorer import Broken, explore
from tests.model.world import RAN_THERE, RUNS, STOPPED, World

# Each breaks one rule of the protocol; what is then to be found stands beside it.
MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {}


def mutant(expected: str) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def add(change: Callable[[pytest.MonkeyPatch], None]) -> None:
        MUTANTS[change.__name__] = (change, expected)

    return add


def does(patch: pytest.MonkeyPatch, name: str, *steps: str) -> None:
    patch.setitem(programs.PROGRAMS, name, steps)


@mutant("two copies run|two owners|one runs")
def the_source_thaws_while_its_offer_is_open(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(states.SOURCE, (State.OFFERED, Event.THAW), State.PREPARED)
    does(patch, "offer again", "act:unfence", "act:thaw", "thaw")


@mutant("without the token|does not have the token")
def the_offer_goes_out_before_the_fence_stands(patch: pytest.MonkeyPatch) -> None:
    does(patch, "create-dump", "number", "call:dump-begin", "freeze", "act:freeze", "call:images", "offer",
             "call:own", "act:fence", "taken")


@mutant("two copies run|one runs|without the token|does not have the token")
def what_is_stopped_to_move_is_fenced_only_afterwards(patch: pytest.MonkeyPatch) -> None:
    """Somebody starts it in between: where nothing is frozen, the fence alone keeps it from running."""
    does(patch, "create-dump --no-memory", "number", "call:dump-begin", "freeze", "act:stop", "call:images",
             "act:fence", "offer", "call:own", "taken")


@mutant("two owners|two copies run|one runs")
def a_refusal_is_not_recorded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_answers, "refusal", lambda world, _: world)
    # Not all has arrived at the first look, and has at the second.
    honest = destination_answers.HANDLERS["own"]

    def own(world: World, attempt: int) -> reply.Answers:
        if world.destination is State.RECEIVING_DUMP:
            yield world, reply.REFUSED
        yield from honest(world, attempt)

    patch.setitem(destination_answers.HANDLERS, "own", own)


@mutant("two owners|two copies run|one runs")
def an_offer_does_not_say_for_which_dump(patch: pytest.MonkeyPatch) -> None:
    honest = destination_answers.HANDLERS["own"]
    patch.setattr(source_word, "NUMBERED", programs.NUMBERED - {"own"})
    patch.setitem(destination_answers.HANDLERS, "own", lambda world, _: honest(world, world.attempt_there))
    inert = programs.inert
    patch.setattr(programs, "inert", lambda world, message: message.request != "own" and inert(world, message))
    patch.setattr(programs, "DUMPS", 2)


@mutant("two owners|two copies run|one runs")
def a_rollback_does_not_wait_for_the_destination(patch: pytest.MonkeyPatch) -> None:
    does(patch, "rollback", *programs.PROGRAMS["rollback alone"])


@mutant("two owners|one runs")
def a_rollback_is_recorded_before_the_answer(patch: pytest.MonkeyPatch) -> None:
    does(patch, "rollback", "roll-back", "call:abandon", "act:unfence", "act:thaw", "rolled-back")


@mutant("two owners|two copies run|one runs")
def a_locked_container_counts_as_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reply, "TROUBLE", reply.REFUSED)


@mutant("without the token|two copies run|one runs")
def what_runs_there_is_abandoned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_answers, "RAN_THERE", set())
    patch.setitem(states.DESTINATION, (State.RESTORED, Event.ABANDON), State.ABANDONING)


@mutant("two copies run|one runs|without the token")
def the_destination_comes_back_and_asks_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_commands, "must_ask", lambda *_: False)


@mutant("two copies run|one runs|without the token")
def the_destination_asks_only_where_it_has_recorded_the_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_commands, "MAY_RESTORE", {State.OWNED})


@mutant("two copies run|one runs|without the token")
def what_ran_before_a_reboot_goes_on_unasked(patch: pytest.MonkeyPatch) -> None:
    """As where an abandon, or a request to restore, arrives late, and finds it killed in the middle of that."""
    honest = destination_answers.settled

    def settled(world: World) -> World:
        after_ = honest(world)
        return destination_answers.gone_on(after_) if after_.stands_fenced else after_

    patch.setattr(destination_answers, "settled", settled)


@mutant("two copies run|one runs|without the token")
def what_runs_without_its_monitor_counts_as_never_run(patch: pytest.MonkeyPatch) -> None:
    """LXC calls it stopped."""
    honest = destination_answers.settled

    def settled(world: World) -> World:
        if world.there == RUNS and not world.monitor:
            return destination_answers.moved(world, Event.RESTORE_FAILED)
        return honest(world)

    patch.setattr(destination_answers, "settled", settled)


@mutant("what runs there is ended")
def what_runs_without_its_monitor_is_ended(patch: pytest.MonkeyPatch) -> None:
    honest = destination_answers.settled

    def settled(world: World) -> World:
        return honest(world if world.monitor else world._replace(there=STOPPED))

    patch.setattr(destination_answers, "settled", settled)


@mutant("without the token")
def a_fence_that_was_taken_away_is_not_made_anew(patch: pytest.MonkeyPatch) -> None:
    honest = destination_commands.restore_moves

    def restore_moves(world: World) -> Iterator[tuple[str, World]]:
        for label, changed in honest(world):
            yield label, changed if changed.destination is State.RESTORED else changed._replace(
                fenced_there=world.fenced_there)

    patch.setattr(destination_commands, "restore_moves", restore_moves)


@mutant("two copies run|one runs|without the token")
def whether_the_word_still_holds_is_not_looked_at_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_commands, "in_time", lambda _: True)


@mutant("two copies run|one runs|two owners|without the token")
def a_forced_rollback_does_not_wait_until_its_word_is_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_programs, "is_over", lambda _: True)


@mutant("two copies run|one runs|does not have the token")
def whether_it_still_stands_still_is_not_looked_at_before_a_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_word, "stands_still", lambda _: True)


@mutant("two copies run|one runs|does not have the token")
def a_fence_that_was_taken_away_is_not_put_back_before_a_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_word, "given", lambda world: world._replace(word=True))


@mutant("two copies run|one runs")
def who_has_lost_its_journal_gives_the_token_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reply, "UNKNOWN", reply.OK)


@mutant("two copies run|one runs|without the token")
def a_source_that_is_still_rolling_back_is_not_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_commands, "TAKEN_BACK", {State.ROLLED_BACK})
    patch.setattr(destination_commands, "LETS_RUN", LETS_RUN | {State.ROLLING_BACK})


@mutant("two copies run|one runs|without the token")
def who_asks_in_the_middle_of_a_forced_rollback_hears_the_state_before_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_word, "told", lambda world: world.source)


@mutant("two copies run|one runs|two owners|without the token")
def an_interrupt_or_any_error_counts_as_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_programs, "is_lost", lambda _: True)


@mutant("two owners|two copies run|one runs")
def whoever_answers_gives_the_token_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_programs, "gives_back", lambda *_, **__: True)


@mutant("two owners|two copies run|one runs")
def whoever_has_heard_of_it_gives_the_token_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_programs, "gives_back", lambda ticket, *, known, answered, offered: known or not offered)


@mutant("two copies run|one runs|two owners|without the token")
def a_late_request_lets_it_run_though_nobody_waits_for_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source_word, "has_leave", lambda *_: True)


@mutant("somebody else's container was removed|taken for the one")
def what_is_there_is_taken_for_ours(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Whose, "may_go", property(lambda whose: whose is not Whose.NOBODYS))


@mutant("somebody else's container was removed or taken over")
def what_is_there_is_overwritten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Whose, "may_be_taken", True)


@mutant("the last copy is ended")
def what_has_run_is_not_looked_at_before_the_end_of_the_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(destination_answers.HANDLERS, "running",
                  lambda world, _: iter([(world, reply.OK if world.destination in RAN_THERE else reply.TROUBLE)]))


@mutant("the last copy is ended|taken for the one|one runs")
def another_one_is_taken_for_what_has_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "has_left", property(
        lambda world: world.destination is State.RESTORED and world.place is Whose.NOBODYS))


@mutant("one runs|without the token|does not have the token")
def a_disk_that_is_not_there_has_nothing_on_it_any_more(patch: pytest.MonkeyPatch) -> None:
    """What has run counts as destroyed."""
    patch.setitem(around.NEEDS_THE_DISK, State.RESTORED, set())


@mutant("what may have run is given up")
def a_mark_that_is_not_seen_was_not_made(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(around.NEEDS_THE_DISK, State.RESTORING, set())


@mutant("two copies run|one runs")
def what_has_given_way_is_not_looked_at_again(patch: pytest.MonkeyPatch) -> None:
    """It was put back, and started, before the source had recorded that it has given way."""
    patch.setattr(World, "is_back", property(lambda _: False))


@mutant("two copies run|one runs")
def what_has_given_way_is_not_back_on_a_disk_that_is_not_there(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(around.NEEDS_THE_DISK, State.FINISHED, set())


@mutant("may never have run on the destination")
def what_has_lost_its_fence_where_it_stopped_is_finished_alone(patch: pytest.MonkeyPatch) -> None:
    """By `finish --force` on the destination; then the source hears that it has run there."""
    patch.setattr(destination_commands, "may_finish_alone", lambda world: world.destination is State.RESTORED and not (
        world.stands_fenced or world.has_left))


@mutant("may never have run on the destination")
def what_has_stopped_in_the_boot_in_which_it_was_let_run_has_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "must_choose", property(lambda _: False))


@mutant("two copies run|one runs|without the token")
def who_forces_on_the_destination_does_not_ask_the_source(patch: pytest.MonkeyPatch) -> None:
    def forced_there(world: World) -> reply.Answers:
        if world.stands_stopped or world.destination in MAY_RESTORE:
            yield from destination_commands.let_run_by_force(world)

    patch.setattr(destination_commands, "forced_there", forced_there)


@mutant("what may have run is removed|what may have run is overwritten")
def what_a_power_cut_has_brought_back_is_not_put_aside_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(destination_answers, "put_aside", lambda world: world)


EACH_TIME = {"the_source_thaws_while_its_offer_is_open", "the_destination_comes_back_and_asks_nobody",
             "what_is_there_is_overwritten"}  # found soon, and of different kinds


@pytest.mark.parametrize("name", [
    name if name in EACH_TIME else pytest.param(name, marks=pytest.mark.nightly) for name in MUTANTS])
def test_the_search_finds_a_broken_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, expected = MUTANTS[name]
    monkeypatch.setattr(programs, "DUMPS", 1)  # unless it needs more
    change(monkeypatch)
    with pytest.raises(Broken, match=expected):
        explore(deep=True)
