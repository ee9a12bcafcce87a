# SPDX-License-Identifier: GPL-2.0-or-later
"""Which paths a heal may take: what the session agreed on holds, whatever the peer asks for later."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tunnel.clock import simulated
from tunnel import gathering, tunnel
from tunnel.outlook import POLICIES, Policy
from tunnel.tunnel import Tunnel

STRICTER: dict[tuple[str, str], str | None] = {
    ("prefer-direct", "prefer-direct"): "prefer-direct",
    ("prefer-direct", "direct-only"): "direct-only",  # as an initiator asks that looks for a way off the relay
    ("prefer-direct", "relay-only"): "relay-only",
    ("direct-only", "prefer-direct"): "direct-only",
    ("direct-only", "direct-only"): "direct-only",
    ("direct-only", "relay-only"): None,
    ("relay-only", "prefer-direct"): "relay-only",
    ("relay-only", "direct-only"): None,
    ("relay-only", "relay-only"): "relay-only",
}


class Told:
    """The peer's channel: `again` comes over it, and what is answered is written down."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        self.peer, self.role = SimpleNamespace(name="hosta"), "responder"
        self.sent: list[dict[str, Any]] = []
        self._bodies = list(bodies)

    async def receive(self, *kinds: str, **_: Any) -> dict[str, Any]:
        if "go" in kinds:
            await asyncio.Event().wait()
        return self._bodies.pop(0)

    async def send(self, kind: str, body: dict[str, Any]) -> None:
        self.sent.append({"type": kind, **body})

    async def reflectors(self) -> list[Any]:
        return []

    async def relay_token(self) -> str:
        return "token"


def test_every_pair_of_policies_is_looked_at() -> None:
    assert set(STRICTER) == {(ours, theirs) for ours in POLICIES for theirs in POLICIES}


@pytest.mark.parametrize(("ours", "theirs"), sorted(STRICTER))
def test_the_stricter_of_both_holds(ours: Policy, theirs: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, object]] = []

    class Attempt:
        def __init__(self, _local: Any, _remote: Any, _key: bytes, _role: str, policy: str, token: object,
                     **_: Any) -> None:
            tried.append((policy, token))

        def start(self) -> None:
            pass

        def close(self) -> None:
            pass

        async def result(self, *, keep: bool) -> Any:
            return SimpleNamespace(endpoint=("192.0.2.1", 5), close=lambda: None)

    async def gather(*_: Any) -> Any:
        return SimpleNamespace(nat=SimpleNamespace(kind="cone"), candidates=[])

    monkeypatch.setattr(tunnel, "RawPort", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(gathering, "gather", gather)
    monkeypatch.setattr(tunnel, "Attempt", Attempt)

    async def set_endpoint(_: Any) -> None:
        pass

    @simulated
    async def test() -> None:
        again = {"type": "again", "attempt": 1, "nat": "cone", "candidates": [], "policy": theirs}
        channel: Any = Told(again, {"type": "close"})
        keys: Any = SimpleNamespace(probe=lambda _: b"")
        interface: Any = SimpleNamespace(set_endpoint=set_endpoint)
        path: Any = SimpleNamespace(local_port=5, close=lambda: None)
        echo: Any = SimpleNamespace()
        await Tunnel(channel, keys, interface, echo, path, ours, 0.0)._listen()
        policy = STRICTER[ours, theirs]
        token = None if policy == "direct-only" else "token"
        assert tried == ([(policy, token)] if policy else [])
        assert [each["policy"] for each in channel.sent] == ([policy] if policy else [])

    test()
