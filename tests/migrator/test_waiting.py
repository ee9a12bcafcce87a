# SPDX-License-Identifier: GPL-2.0-or-later
"""How many connections of paired peers the agent serves."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from migrator import waiting
from migrator.waiting import SERVED_EACH, SERVED_MAX, Places
from tunnel import service
from tunnel.service import Purpose


def test_each_has_its_share_and_all_have_a_bound() -> None:
    places = Places()
    peers = [bytes([number]) for number in range(SERVED_MAX // SERVED_EACH + 1)]
    for peer in peers[:-1]:
        assert [places.take(peer) for _ in range(SERVED_EACH + 1)] == [True] * SERVED_EACH + [False]
    assert not places.take(peers[-1]), "all are taken"
    places.give_back(peers[0])
    assert places.take(peers[-1]) and not places.take(peers[-1])


def test_a_peer_over_all_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is closed before a process is started for it; when one ends there is a place again."""
    monkeypatch.setattr(waiting, "_places", Places())
    end = threading.Event()
    served: list[bytes] = []

    def serve(peer: bytes, connection: socket.socket) -> None:
        served.append(peer)
        with connection:
            end.wait()

    monkeypatch.setattr(waiting, "_migrate", serve)

    async def listen(_tunnel: Any, connected: Callable[[Purpose, socket.socket], Awaitable[None]]) -> None:
        sessions.append(connected)

    monkeypatch.setattr(service, "listen", listen)
    sessions: list[Callable[[Purpose, socket.socket], Awaitable[None]]] = []
    tunnel: Any = SimpleNamespace(peer=SimpleNamespace(name="hostb", public=SimpleNamespace(id=b"b")))

    async def ask(session: Any) -> bool:
        """Whether one more connection is closed at once."""
        ours, its = socket.socketpair()
        tasks.append(asyncio.create_task(session(Purpose.MIGRATE, its)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sockets.append(ours)
        return its.fileno() == -1

    tasks: list[asyncio.Task[None]] = []
    sockets: list[socket.socket] = []

    async def go() -> None:
        for _ in range(2):
            await waiting._serve(tunnel)
        assert [await ask(sessions[number % 2]) for number in range(SERVED_EACH + 1)] == [False] * SERVED_EACH + [True]
        end.set()
        await asyncio.gather(*tasks)
        end.clear()
        assert not await ask(sessions[0])
        end.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert len(served) == SERVED_EACH + 1
    for each in sockets:
        each.close()
