# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts cross the wire: what was dumped comes back, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings

from migrator.errors.connection import ProtocolError
from migrator.preflight.facts.facts_message import DEPTH_MAX, AskFacts, HostAnswer, bounded
from migrator.preflight.facts.host_facts import HostFacts, Query
from migrator.transfer.wire_codec import decoded, encoded
from tests.effort import tries
from tests.migrator.made_up import DESTINATION, JSON, SOURCE, anything


def sent(facts: HostFacts) -> dict[str, Any]:
    """An answer with these facts, as it comes over the wire."""
    found = json.loads(json.dumps(encoded(HostAnswer(facts=facts, fenced_copy=False))))
    assert isinstance(found, dict)
    return found


def read(facts: Any) -> HostFacts:
    return decoded(HostAnswer, {"facts": facts, "fenced_copy": False}).facts


@pytest.mark.parametrize("facts", [SOURCE, DESTINATION])
def test_facts_come_back_as_they_went(facts: HostFacts) -> None:
    assert decoded(HostAnswer, sent(facts)).facts == facts


def test_a_question_comes_as_it_went() -> None:
    asked = AskFacts(query=Query("/pool", ("/a\udcff",)), lxcpath=None, name="web")
    assert decoded(AskFacts, json.loads(json.dumps(encoded(asked)))) == asked
    assert encoded(asked)["lxcpath"] is None


@settings(max_examples=tries(20, 300), deadline=None)
@given(anything(HostFacts))
def test_any_facts_come_back(facts: HostFacts) -> None:
    assert decoded(HostAnswer, sent(facts)).facts == facts


@given(JSON)
def test_no_other_data_makes_facts(data: Any) -> None:
    with pytest.raises(ProtocolError):
        read(data if not isinstance(data, dict) else {**data, "name": 5})
    with pytest.raises(ProtocolError):
        decoded(HostAnswer, data)


PARTS = ["criu", "storage", "interfaces", "containers", "present", "apparmor_profiles", "time"]


@pytest.mark.parametrize("part", PARTS)
@given(data=JSON)
def test_a_damaged_part(part: str, data: Any) -> None:
    """Whatever stands in one field: either it is well-formed or it is refused; nothing else is raised."""
    try:
        facts = read(sent(SOURCE)["facts"] | {part: data})
    except ProtocolError:
        return
    assert dataclasses.replace(facts, **{part: getattr(SOURCE, part)}) == SOURCE


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "x" * 8192}, ""),
    ({"name": "x" * 8193}, "a text of 8193 characters"),
    ({"programs": ["x"] * 20_000}, ""),
    ({"programs": ["x"] * 20_001}, "a list of 20001 items"),
    ({"time": float("inf")}, "sensible size"),
    ({"time": float("nan")}, "sensible size"),
    ({"time": 10**400}, "sensible size"),
    ({"time": "now"}, "Expected `float`, got `str` - at `$.facts.time`"),
    ({"page_size": True}, "Expected `int`, got `bool` - at `$.facts.page_size`"),
    ({"page_size": 2**64 - 1}, ""),
    ({"page_size": 2**64}, "sensible size"),
    ({"criu": None}, "got `null` - at `$.facts.criu`"),
    ({"criu": {"cpu": {"capability": [1, "2"]}}}, "at `$.facts.criu.cpu.capability[1]`"),
    ({"interfaces": {}}, "Expected `array`, got `object` - at `$.facts.interfaces`"),
    ({"interfaces": [{"kind": "veth"}]}, "missing required field `name` - at `$.facts.interfaces[0]`"),
    ({"present": {"/x": 1}}, "Expected `str`, got `int` - at `$.facts.present[...]`"),
    ({"present": {"x" * 9000: "file"}}, "a text of 9000 characters"),
    ({"\udcff": 1}, "make no sense"),
])
def test_refused(changes: dict[str, Any], words: str) -> None:
    facts = sent(SOURCE)["facts"] | {"interfaces": [], "present": {}} | changes
    if not words:
        read(facts)
        return
    with pytest.raises(ProtocolError) as caught:
        read(facts)
    assert words in str(caught.value)


def test_bounded_in_all() -> None:
    many = [{"name": "i", "addresses": ["a"] * 19_000}] * 11
    with pytest.raises(ProtocolError, match="200000 values"):
        read({"name": "x", "interfaces": many})


def nested(levels: int) -> Any:
    data: Any = 1
    for _ in range(levels):
        data = [data]
    return data


def test_bounded_in_depth() -> None:
    bounded({"facts": nested(DEPTH_MAX + 1)})
    with pytest.raises(ProtocolError, match="too deeply"):
        bounded({"facts": nested(DEPTH_MAX + 2)})


def test_a_newer_version_may_send_more() -> None:
    assert read(sent(SOURCE)["facts"] | {"colour": "green"}) == SOURCE


def test_pairs_have_two() -> None:
    criu = sent(SOURCE)["facts"]["criu"]
    assert read(sent(SOURCE)["facts"] | {"criu": criu | {"config_faults": [["a", "b"]]}}).criu.config_faults == (
        ("a", "b"),)
    with pytest.raises(ProtocolError, match="length 2, got 3"):
        read(sent(SOURCE)["facts"] | {"criu": criu | {"config_faults": [["a", "b", "c"]]}})
