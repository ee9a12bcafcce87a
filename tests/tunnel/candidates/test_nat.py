# SPDX-License-Identifier: GPL-2.0-or-later
"""What reflectors saw, and what NAT that means; and what two NATs let expect."""

from __future__ import annotations

import itertools

import pytest

from tunnel.candidates.nat import KINDS, Endpoint, Kind, Observation, classify
from tunnel.candidates.outlook import outlook

LOCAL = ("10.1.0.2", 40000)
A, A2, B = ("192.0.2.1", 3478), ("192.0.2.1", 3479), ("192.0.2.2", 3478)
OUTSIDE = "198.51.100.2"


def seen(*found: tuple[Endpoint, Endpoint], local: Endpoint = LOCAL) -> list[Observation]:
    return [Observation(reflector, local, endpoint) for reflector, endpoint in found]


CASES: list[tuple[str, list[Observation], Kind]] = [
    ("nobody answered", [], "blocked"),
    ("own address", seen((A, LOCAL), (B, LOCAL)), "open"),
    ("one mapping", seen((A, (OUTSIDE, 40000)), (A2, (OUTSIDE, 40000)), (B, (OUTSIDE, 40000))), "cone"),
    ("one mapping, another port", seen((A, (OUTSIDE, 1024)), (B, (OUTSIDE, 1024))), "cone"),
    ("by address", seen((A, (OUTSIDE, 1)), (A2, (OUTSIDE, 1)), (B, (OUTSIDE, 2))), "symmetric"),
    ("by port", seen((A, (OUTSIDE, 1)), (A2, (OUTSIDE, 2))), "symmetric"),
    ("by outside address", seen((A, (OUTSIDE, 1)), (B, ("198.51.100.3", 1))), "symmetric"),
    ("one reflector only", seen((A, (OUTSIDE, 40000))), "cone"),
    ("own address, another port", seen((A, (LOCAL[0], 1)), (B, (LOCAL[0], 1))), "cone"),
]


@pytest.mark.parametrize(("observations", "kind"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_classify(observations: list[Observation], kind: Kind) -> None:
    found = classify(observations)
    assert found.kind == kind
    assert found.detail


@pytest.mark.parametrize(("here", "there"), list(itertools.product(KINDS, KINDS)))
def test_outlook(here: Kind, there: Kind) -> None:
    ours, theirs = outlook(here, there), outlook(there, here)
    assert ours.wait == theirs.wait
    hopeless = "blocked" in (here, there) or here == there == "symmetric"
    assert (ours.wait < 1) == hopeless
    searches = {ours.search, theirs.search}
    assert searches == ({"wide", "narrow"} if {here, there} == {"symmetric", "cone"} else {None})
    assert ours.relay_reason
    assert ours.direct_reason("reflexive", 0, 0)
