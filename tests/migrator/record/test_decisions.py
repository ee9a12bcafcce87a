# SPDX-License-Identifier: GPL-2.0-or-later
"""Every decision, spelled out: decisions.txt. What the model finds safe may still not be what was meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.copies import resume_rules
from migrator.record.decisions import Verdict, decide, step
from migrator.record.states import State
from stages import load_all

STATES = [None, *State]
TOPICS = [each.split("\n") for each in
          Path(__file__).with_name("decisions.txt").read_text().rstrip().split("\n\n== ")[1:]]
STAGES = ["prepare-data", "import-data", "create-dump", "restore-dump", "finish", "rollback"]


def answer(topic: str, here: State | None, there: State | None) -> str:
    images = topic.endswith("are there")
    if topic == "step":
        return step(here, there) or "nothing"
    if topic.startswith("on_source") and here:
        return resume_rules.on_source(here, there, images=images) or "nothing"
    if topic.startswith("on_destination") and here:
        return resume_rules.on_destination(here, there, images=images) or "nothing"
    decision = decide(topic, here, there)
    assert bool(decision.missing) is (decision.verdict is Verdict.REFUSE), "who refuses says why"
    return f"{decision.verdict.name} {decision.next_stage}".rstrip()


def expected(lines: list[str]) -> Iterator[tuple[State | None, State | None, str]]:
    for line in lines:
        here, _, answers = line.partition(" -> ")
        usual, *others = answers.split(" | ")
        special = {state(word): what for what, words in (each.split(": ") for each in others) for word in words.split()}
        for word in here.split():
            for there in STATES:
                yield state(word), there, special.get(there, usual)


def state(word: str) -> State | None:
    return None if word == "-" else State(word)


@pytest.mark.parametrize(("topic", "lines"), [(first.removeprefix("== "), rest) for first, *rest in TOPICS],
                         ids=[first for first, *_ in TOPICS])
def test_it_is_as_written_down(topic: str, lines: list[str]) -> None:
    seen = set()
    for here, there, wanted in expected(lines):
        assert answer(topic, here, there) == wanted, f"{topic} in {here}, the other host in {there}"
        seen.add(here)
    assert seen >= set(State)


def test_nothing_is_left_out() -> None:
    assert [first for first, *_ in TOPICS if first in STAGES] == STAGES
    assert set(STAGES) <= {stage.NAME for stage in load_all()}
    assert len(TOPICS) == len(STAGES) + 5


@pytest.mark.parametrize(("ticket", "known", "answered", "offered", "is_it", "gives_back"), [
    ("t", True, "t", True, True, True), ("t", True, "u", True, False, False), ("t", True, "", False, False, False),
    ("t", False, "t", True, False, False), ("t", False, "t", False, False, False),
    ("", True, "t", True, True, True), ("", True, "", False, True, True),
    ("", False, "", True, False, False), ("", False, "", False, False, True),
])
def test_whose_word_counts(ticket: str, known: bool, answered: str, offered: bool, is_it: bool,
                           gives_back: bool) -> None:
    assert resume_rules.is_known(ticket, known=known, answered=answered) is is_it
    assert resume_rules.gives_back(ticket, known=known, answered=answered, offered=offered) is gives_back
