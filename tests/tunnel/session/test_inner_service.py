# SPDX-License-Identifier: GPL-2.0-or-later
"""The listener inside the tunnel, on loopback: it asks for the session's secret, both ways, before anything else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import tries
from tests.tunnel.clock import as_time_goes_by, eventually, pass_time, standing
from tests.tunnel.fake_tunnel import FakeTunnel, free_port
from tunnel.session import inner_service
from tunnel.session.inner_service import Purpose
from tunnel.session.setup import quiet
from tunnel.tunnel_errors import TunnelBroken


@contextlib.asynccontextmanager
async def listening(debug: Callable[[str], None] = quiet, **fields: Any) -> AsyncIterator[tuple[Any, list[Purpose]]]:
    """A service that answers `hello` to whoever gets in; with what those were for."""
    served = []

    async def serve(purpose: Purpose, connection: socket.socket) -> None:
        served.append(purpose)
        with connection:
            connection.sendall(b"hello")

    while True:
        tunnel: Any = FakeTunnel(free_port(), **fields)
        task = asyncio.create_task(inner_service.listen(tunnel, serve, debug))
        await asyncio.sleep(0)  # now it listens, unless somebody else has got the port meanwhile
        if not task.done():
            break
    try:
        yield tunnel, served
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("purpose", Purpose)
def test_who_knows_the_secret_gets_in(purpose: Purpose) -> None:
    async def test() -> None:
        async with listening() as (tunnel, served):
            with await inner_service.connect(tunnel, purpose) as connection:
                assert connection.getblocking()
                assert await asyncio.to_thread(connection.recv, 100) == b"hello"
            assert served == [purpose]

    standing(test)()


@standing
async def test_a_wrong_secret() -> None:
    async with listening() as (tunnel, served):
        with pytest.raises(TunnelBroken):
            await inner_service.connect(dataclasses.replace(tunnel, secret=b"x" * 32), Purpose.MIGRATE)
        assert not served


@standing
async def test_waits_for_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel: Any = FakeTunnel(free_port())
    tries: list[socket.socket | None] = []
    honest = inner_service._connected

    async def connected(tunnel: Any) -> socket.socket | None:
        tries.append(await honest(tunnel))
        return tries[-1]

    monkeypatch.setattr(inner_service, "_connected", connected)
    connecting = asyncio.create_task(inner_service.connect(tunnel, Purpose.MIGRATE))
    for count in range(1, 4):
        await eventually(lambda: len(tries) == count)  # noqa: B023  # called within this round
        pass_time(0.02)

    async def serve(_purpose: Purpose, connection: socket.socket) -> None:
        connection.close()

    listener = asyncio.create_task(inner_service.listen(tunnel, serve))
    await as_time_goes_by(asyncio.shield(connecting), 0.02)
    connecting.result().close()
    assert tries[:3] == [None] * 3
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)


@standing
async def test_a_listener_that_does_not_know_the_secret() -> None:
    """A local user may be faster than the service: the initiator tells it nothing."""
    heard: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"MGT1" + os.urandom(32))
        heard.append(await reader.read(100))
        writer.write(heard[-1][-32:])  # its own proof, reflected
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(impostor, "::1", 0)
    tunnel: Any = FakeTunnel(server.sockets[0].getsockname()[1])
    with pytest.raises(TunnelBroken, match="does not know"):
        await inner_service.connect(tunnel, Purpose.MIGRATE)
    await eventually(lambda: len(heard) == 2)
    assert len(heard[0]) == 1 + 32 + 32
    assert heard[1] == b""
    server.close()


@standing
async def test_a_process_that_is_out_of_descriptors_goes_on_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session that it listens for may have a move under way."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    honest, refused = loop.sock_accept, [True] * 3

    async def accept(sock: socket.socket) -> Any:
        if refused:
            refused.pop()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await honest(sock)

    monkeypatch.setattr(loop, "sock_accept", accept)
    async with listening(debug=told.append) as (tunnel, served):
        connecting = asyncio.create_task(inner_service.connect(tunnel, Purpose.MIGRATE))
        (await as_time_goes_by(connecting, inner_service.ACCEPT_PAUSE / 10)).close()
        assert served == [Purpose.MIGRATE]
    assert told == ["a connection through the tunnel has to wait: [Errno 24] Too many open files"]


@standing
async def test_from_elsewhere() -> None:
    """Not the peer's tunnel address: not even a greeting."""
    async with listening(remote_address="fd00::2") as (tunnel, served):
        reader, writer = await asyncio.open_connection("::1", tunnel.port)
        assert await reader.read() == b""
        writer.close()
        assert not served


@settings(max_examples=tries(10, 100), deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage(data: bytes, whole: bool) -> None:
    """No garbage gets in, and whoever knows the secret still does."""

    async def test() -> None:
        async with listening() as (tunnel, served):
            (await inner_service.connect(tunnel, Purpose.BENCH)).close()
            reader, writer = await asyncio.open_connection("::1", tunnel.port)
            writer.write(data.ljust(65, b"\0") if whole else data)
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                assert (await reader.read())[36:] == b""
            writer.close()
            (await inner_service.connect(tunnel, Purpose.MIGRATE)).close()
            assert served == [Purpose.BENCH, Purpose.MIGRATE]

    standing(test)()


@standing
async def test_replay() -> None:
    """What was recorded of one connection proves nothing in another: each has random bytes of its own."""
    async with listening() as (tunnel, served):
        recorded: list[bytes] = []

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("::1", tunnel.port)
            writer.write(await there.readexactly(36))
            recorded.append(await reader.readexactly(65))
            back.write(recorded[0])
            writer.write(await there.read(100))
            writer.close()
            back.close()

        server = await asyncio.start_server(tap, "::1", 0)
        tapped = dataclasses.replace(tunnel, port=server.sockets[0].getsockname()[1])
        (await inner_service.connect(tunnel, Purpose.MIGRATE)).close()  # it listens
        (await inner_service.connect(tapped, Purpose.MIGRATE)).close()
        served.clear()
        reader, writer = await asyncio.open_connection("::1", tunnel.port)
        await reader.readexactly(36)
        writer.write(recorded[0])
        assert await reader.read() == b""
        assert not served
        writer.close()
        server.close()
