# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that a command's tunnel lives in, and the stream through it; the tunnel is a fake."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from migrator.errors.connection import ConnectionLost
from migrator.remote import destination, other_host, tunnelled
from migrator.remote.tunnelled import Loop, Opened, TunnelStream
from tests.migrator.threads import until_waits
from tunnel.health import path_health
from tunnel.session import live_tunnel as tunnels
from tunnel.tunnel_errors import TunnelBroken

LIMIT = 300.0  # seconds; nothing here should ever take that long, also where the machine stands still for a while


@dataclasses.dataclass
class Peer:
    name: str = "attic"


class FakeTunnel:
    """What a stream needs of a tunnel."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.ended = asyncio.Event()
        self.error: TunnelBroken | None = None
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1
        self.ended.set()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(LIMIT)
    yield made
    made.close()


def test_result_and_error(loop: Loop) -> None:
    async def good() -> int:
        await asyncio.sleep(0)
        return 7

    async def bad() -> None:
        raise TunnelBroken(name="attic", reason="it fell")

    assert loop.call(good()) == 7
    with pytest.raises(TunnelBroken):
        loop.call(bad())


def test_an_interrupt_waits_until_all_is_undone(loop: Loop) -> None:
    """Ctrl-C while a tunnel is made: the command ends when what was made is gone, and not before."""
    steps: list[str] = []
    main = threading.main_thread()

    async def work() -> None:
        steps.append("made")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            steps.append("undone")

    def interrupt() -> None:
        until_waits(main, "result", "wait")
        assert main.ident
        signal.pthread_kill(main.ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        loop.call(work())
    assert steps == ["made", "undone"]


def test_close_ends_what_still_runs() -> None:
    loop, ended = Loop(LIMIT), threading.Event()

    async def begin() -> None:
        async def background() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        loop.task = asyncio.create_task(background())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    loop.call(begin())
    loop.close()
    loop.close()
    assert ended.is_set()


def stream(loop: Loop) -> tuple[TunnelStream, FakeTunnel, socket.socket]:
    ours, theirs = socket.socketpair()
    tunnel: Any = FakeTunnel()
    made = TunnelStream(Opened(loop, tunnel), ours)
    made.settimeout(LIMIT)
    return made, tunnel, theirs


def test_stream() -> None:
    made, tunnel, theirs = stream(Loop(LIMIT))
    made.write(b"there", b" and ")
    assert theirs.recv(100) == b"there and "
    theirs.sendall(b"back")
    buffer = bytearray(100)
    assert made.readinto(memoryview(buffer)) == 4
    made.close()
    made.close()
    assert tunnel.closed == 1
    assert theirs.recv(100) == b""
    theirs.close()


def test_a_broken_tunnel_ends_the_stream_and_says_why() -> None:
    loop = Loop(LIMIT)
    made, tunnel, theirs = stream(loop)

    async def breaks() -> None:
        tunnel.error = TunnelBroken(name="attic", reason="healing failed")
        tunnel.ended.set()

    def break_it() -> None:
        until_waits(threading.main_thread(), "readinto")
        loop.call(breaks())

    breaking = threading.Thread(target=break_it)
    breaking.start()
    with pytest.raises(ConnectionLost, match="healing failed"):
        made.readinto(memoryview(bytearray(10)))
    breaking.join()
    made.close()
    theirs.close()


@pytest.mark.parametrize(("where", "timeout", "patience"), [
    ("beta", 9.0, 9.0), ("peer:beta", 9.0, tunnelled.PATIENCE), ("peer:beta", 99.0, 99.0),
])
def test_the_protocol_is_more_patient_than_a_tunnel_that_heals(where: str, timeout: float, patience: float) -> None:
    assert tunnelled.PATIENCE > path_health.DEAD_AFTER + tunnels.HEAL_LIMIT + 5
    assert other_host._patience(destination.ConnectOptions(timeout=timeout), destination.parse(where)) == patience
