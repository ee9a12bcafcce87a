# SPDX-License-Identifier: GPL-2.0-or-later
"""The sockets of a punch: how many a process has at a time, whatever its peers do, and that none is left."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from tests.tunnel.clock import simulated
from tunnel.candidates.gathering import Local
from tunnel.candidates.nat import Nat
from tunnel.candidates.ports import Ports
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer
from tunnel.punching import birthday, prober
from tunnel.session import offers, responder
from tunnel.session.session_keys import Ours
from tunnel.tunnel_errors import NoPath, RendezvousUnavailable

SESSION = bytes(range(16))


def descriptors() -> int:
    gc.collect()  # what other tests have left to it
    return len(list(Path("/proc/self/fd").iterdir()))


@simulated
async def test_one_search_with_many_sockets_at_a_time() -> None:
    before, each = descriptors(), [Ports.open() for _ in range(4)]
    assert [ports.more(birthday.WIDE_SOCKETS) for ports in each] == [birthday.WIDE_SOCKETS, 0, 0, 0]
    assert descriptors() - before <= birthday.WIDE_SOCKETS + 2 * len(each)
    each[1].close()
    assert each[2].more(1) == 0, "another one that is closed gives nothing back"
    each[0].close()
    assert each[2].more(1) == 1
    for ports in each:
        ports.close()
    assert descriptors() == before


class Called:
    """What the agent has of a peer that has rung and gone; `channel.Called` to the rest."""

    role, session = "responder", SESSION

    def __init__(self) -> None:
        self.identity, self.peer = Identity.generate(), Peer("hosta", Identity.generate().public, (), 0.0)

    async def send(self, *_: Any) -> None:
        raise RendezvousUnavailable(reason="nobody is there", config="")

    async def receive(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


def test_a_punch_whose_answer_cannot_be_sent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on to open its sockets, and nobody would be there to close them."""

    async def gathered(*_: Any) -> Any:
        return Local(Ports.open(), (), Nat("symmetric", "")), None

    monkeypatch.setattr(responder, "gathered", gathered)
    monkeypatch.setattr("tunnel.wireguard.backend", lambda: None)
    channel: Any = Called()
    offer = {"type": "offer", "nat": "cone", "policy": "prefer-direct", "program": "",
             **offers.keys(Ours(SESSION, "initiator", channel.peer.public.id).public),
             "candidates": [{"kind": "reflexive", "address": "203.0.113.9", "port": 4000}]}

    @simulated
    async def test() -> None:
        await asyncio.to_thread(int)  # the loop's thread, and what it takes, is there
        before = descriptors()
        with pytest.raises(NoPath, match="nobody is there"):
            await responder._answer(channel, offer, "prefer-direct", "")
        await asyncio.sleep(prober.LIMIT + 1)
        assert descriptors() == before

    test()
