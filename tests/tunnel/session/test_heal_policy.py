# SPDX-License-Identifier: GPL-2.0-or-later
"""What a peer may ask for in a heal: the paths that the session agreed on, and not without end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tunnel.clock import simulated
from tunnel.candidates import gathering
from tunnel.candidates.outlook import POLICIES, Policy
from tunnel.session import live_tunnel
from tunnel.session.live_tunnel import Tunnel

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


class Scene:
    """A responder's tunnel that stands, and what it has tried: by which policy, with which right to use the relay."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tried: list[tuple[str, object]] = []
        tried = self.tried

        class Attempt:
            def __init__(self, _local: Any, _remote: Any, _key: bytes, _role: str, policy: str, token: object,
                         **_: Any) -> None:
                tried.append((policy, token))

            def start(self) -> None:
                pass

            def close(self) -> None:
                pass

            async def result(self, *, keep: bool) -> Any:
                return SimpleNamespace(endpoint=("192.0.2.1", 5), local_port=5, close=lambda: None)

        async def gather(*_: Any) -> Any:
            return SimpleNamespace(nat=SimpleNamespace(kind="cone"), candidates=[])

        patch.setattr(live_tunnel, "RawPort", lambda _: SimpleNamespace(close=lambda: None))
        patch.setattr(gathering, "gather", gather)
        patch.setattr(live_tunnel, "Attempt", Attempt)

    def tunnel(self, told: Told, policy: Policy) -> Tunnel:
        async def set_endpoint(_: Any) -> None:
            pass

        channel: Any = told
        keys: Any = SimpleNamespace(probe=lambda _: b"")
        interface: Any = SimpleNamespace(set_endpoint=set_endpoint)
        path: Any = SimpleNamespace(local_port=5, close=lambda: None)
        echo: Any = SimpleNamespace()
        return Tunnel(channel, keys, interface, echo, path, policy, 0.0)


def again(attempt: int, policy: str = "prefer-direct") -> dict[str, Any]:
    return {"type": "again", "attempt": attempt, "nat": "cone", "candidates": [], "policy": policy}


@pytest.mark.parametrize(("ours", "theirs"), sorted(STRICTER))
def test_the_stricter_of_both_holds(ours: Policy, theirs: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    @simulated
    async def test() -> None:
        channel = Told(again(1, theirs), {"type": "close"})
        await scene.tunnel(channel, ours)._listen()
        policy = STRICTER[ours, theirs]
        token = None if policy == "direct-only" else "token"
        assert scene.tried == ([(policy, token)] if policy else [])
        assert [each["policy"] for each in channel.sent] == ([policy] if policy else [])

    test()


def test_a_peer_has_not_punches_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sends to other addresses, if it says so: enough for an honest one to heal, and then one in 15 s."""
    scene = Scene(monkeypatch)

    @simulated
    async def test() -> None:
        channel = Told()
        stands = scene.tunnel(channel, "prefer-direct")

        async def asks(*attempts: int) -> list[int]:
            channel.sent.clear()
            for attempt in attempts:
                await stands._answer_again(again(attempt))
            return [each["attempt"] for each in channel.sent]

        assert await asks(*range(1, 13)) == list(range(1, 13))
        assert await asks(*range(13, 1000)) == []
        await asyncio.sleep(14.9)
        assert await asks(13) == []
        await asyncio.sleep(0.2)
        assert await asks(1, 13, 13, 14) == [13], "asked for again, and what is old costs nothing"
        await asyncio.sleep(3600)
        assert await asks(*range(14, 40)) == list(range(14, 26))
        assert len(scene.tried) == 12 + 1 + 12

    test()
