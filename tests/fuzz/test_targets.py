# SPDX-License-Identifier: GPL-2.0-or-later
"""Every parser of wire data under random bytes, and under JSON objects that look like messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import tries
from tests.fuzz.targets import TARGETS, Target
from tunnel.identity.own_identity import Identity

PUBLIC = Identity.generate().public.to_text()
WORDS = st.sampled_from([
    "type", "to", "ref", "line", "data", "session", "from", "identity", "signature", "waits", "nameplate", "rendezvous",
    "host", "port", "pake", "confirm", "done", "burned", "reason", "op", "name", "nonce", "candidates", "kind",
    "address", "nat", "policy", "wg", "eph", "attempt", "challenge", "reflectors", "version", "relay",
])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | WORDS | st.sampled_from([
        PUBLIC, "00" * 32, "AAAA", "A" * 43 + "=", "A" * 86 + "==", "192.0.2.1", "::1", "wss://x", "host", "offer",
        "message", "answer", "refused", "send", "token", "present", "prefer-direct", 1, 443, 2**64, -1]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=10,
)
MESSAGES = st.dictionaries(WORDS, VALUES, max_size=7).map(lambda found: json.dumps(found).encode())
DATAGRAMS = st.tuples(st.sampled_from([b"MGR1", b"MGA1", b"MRL1", b"MGS1", b"MGS2", b"MI1.", b"MA1.", b"mi1:", b"wss://"]),
                      st.binary(max_size=200)).map(b"".join)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_any_bytes_are_read_or_refused(target: Target) -> None:
    @settings(max_examples=tries(40, 1000), deadline=None)
    @given(st.binary(max_size=600) | MESSAGES | DATAGRAMS)
    def test(data: bytes) -> None:
        target(data)

    test()
