# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts cross the wire: what was dumped comes back, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings

from migrator.config.lxc_settings import Config
from migrator.errors.connection import ProtocolError
from migrator.preflight.facts import wire_form
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts, Query
from tests.effort import tries
from tests.migrator.made_up import CONTAINER, DESTINATION, JSON, SOURCE, anything


@pytest.mark.parametrize("facts", [SOURCE, DESTINATION, CONTAINER, Query("/pool", ("/a",))])
def test_facts_come_back_as_they_went(facts: Any) -> None:
    assert wire_form.load(type(facts), json.loads(json.dumps(wire_form.dump(facts)))) == facts


@settings(max_examples=tries(20, 300), deadline=None)
@given(anything(HostFacts) | anything(ContainerFacts))
def test_any_facts_come_back(facts: Any) -> None:
    assert wire_form.load(type(facts), json.loads(json.dumps(wire_form.dump(facts)))) == facts


@given(JSON)
def test_no_other_data_makes_facts(data: Any) -> None:
    with pytest.raises(ProtocolError):
        wire_form.load(HostFacts, data if not isinstance(data, dict) else {**data, "name": 5})


PARTS = ["criu", "storage", "interfaces", "containers", "present", "apparmor_profiles", "time"]


@pytest.mark.parametrize("part", PARTS)
@given(data=JSON)
def test_a_damaged_part(part: str, data: Any) -> None:
    """Whatever stands in one field: either it is well-formed or it is refused; nothing else is raised."""
    whole = json.loads(json.dumps(wire_form.dump(SOURCE))) | {part: data}
    try:
        facts = wire_form.load(HostFacts, whole)
    except ProtocolError:
        return
    assert dataclasses.replace(facts, **{part: getattr(SOURCE, part)}) == SOURCE


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "x" * 9000}, "HostFacts.name has 9000 characters"),
    ({"programs": ["x"] * 20_001}, "20001 items"),
    ({"time": float("inf")}, "sensible size"),
    ({"time": "now"}, "HostFacts.time is not float"),
    ({"page_size": True}, "HostFacts.page_size is not int"),
    ({"page_size": 2**64}, "is not int"),
    ({"criu": None}, "HostFacts.criu is not an object"),
    ({"criu": {"cpu": {"capability": [1, "2"]}}}, "HostFacts.criu.cpu.capability[1] is not int"),
    ({"interfaces": {}}, "HostFacts.interfaces is not a list"),
    ({"interfaces": [{"kind": "veth"}]}, "HostFacts.interfaces[0] name is missing"),
    ({"present": {"/x": 1}}, "present[/x] is not str"),
    ({"present": {"x" * 9000: "file"}}, "short text"),
])
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        wire_form.load(HostFacts, wire_form.dump(SOURCE) | {"interfaces": [], "present": {}} | changes)
    assert words in str(caught.value)


def test_bounded_in_all() -> None:
    many = [{"name": "i", "addresses": ["a"] * 19_000}] * 11
    with pytest.raises(ProtocolError, match="200000 values"):
        wire_form.load(HostFacts, {"name": "x", "interfaces": many})


def test_a_newer_version_may_send_more() -> None:
    data = wire_form.dump(CONTAINER) | {"colour": "green"}
    assert wire_form.load(ContainerFacts, json.loads(json.dumps(data))) == CONTAINER


def test_pairs_have_two() -> None:
    data = json.loads(json.dumps(wire_form.dump(Config(hooks=(("a", "b"),)))))
    assert wire_form.load(Config, data).hooks == (("a", "b"),)
    with pytest.raises(ProtocolError, match="3 items, not 2"):
        wire_form.load(Config, data | {"hooks": [["a", "b", "c"]]})
