# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that nobody answers for, which a peer can have this host look up, and what does not wait for them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.tunnel.clock import eventually, standing
from tunnel.identity.tunnel_config import Server
from tunnel.signalling import dial

LISTEN = ("192.0.2.7", 0)


class Resolver:
    """Stands for getaddrinfo: names below .silent are answered for when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.fails = False

    def __call__(self, host: str, _port: Any, *_: Any, flags: int = 0, **__: Any) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        self.asked.append(host)
        if host.endswith(".silent"):
            self.answers.wait()
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", LISTEN),
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::7", 0, 0, 3))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    found = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield found
    found.answers.set()


def server(name: str, *, by_peer: bool = True, port: int = 8443) -> Server:
    found = Server.parse(f"wss://{name}:{port}")
    return found.of_peer() if by_peer else found


async def of(name: str, *, by_peer: bool = True, port: int = 8443) -> list[Any]:
    """The addresses of a server."""
    return [each[4] for each in await dial._addresses(server(name, by_peer=by_peer, port=port))]


async def ended(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_nothing_waits_for_names_that_nobody_answers_for(resolver: Resolver) -> None:
    """WireGuard, interfaces and their figures are in asyncio's own threads, which are few."""
    @standing
    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        silent = [asyncio.create_task(of(f"a{number}.silent")) for number in range(8)]
        await asyncio.sleep(0)
        other = asyncio.create_task(asyncio.to_thread(lambda: "done"))
        fails = threading.Timer(120, resolver.answers.set)  # for a failure that does not hang
        fails.start()
        assert (await ended(other)) == ["done"]
        assert not any(each.done() for each in silent), "it has not waited for them"
        assert await of("rv.example", by_peer=False) == [("192.0.2.7", 8443), ("fe80::7", 8443, 0, 3)]
        assert not resolver.answers.is_set()
        fails.cancel()
        resolver.answers.set()
        await ended(*silent)

    test()


def test_a_name_is_not_looked_up_again_while_it_is_looked_up(resolver: Resolver) -> None:
    """However often it is asked for, and with whatever port; two look-ups at most of what the user has named."""
    @standing
    async def test() -> None:
        asked = [asyncio.create_task(of("a.silent", port=port)) for port in (8443, 8444) for _ in range(10)]
        await eventually(lambda: resolver.asked)
        asked[0].cancel()  # as when the time for a try is over; the others wait on
        await ended(asked[0])
        again = asyncio.create_task(of("a.silent"))
        ours = [asyncio.create_task(of("a.silent", by_peer=False)) for _ in range(5)]
        await eventually(lambda: len(resolver.asked) >= 2)
        resolver.answers.set()
        found = await ended(*asked[1:], again, *ours)
        assert [each[0] for each in found] == [("192.0.2.7", 8443)] * 9 + [("192.0.2.7", 8444)] * 10 + [
            ("192.0.2.7", 8443)] * 6
        assert resolver.asked == ["a.silent"] * 2
        await of("a.silent")
        assert resolver.asked == ["a.silent"] * 3, "what was found is not kept"

    test()


def test_a_look_up_that_fails_fails_for_all_who_wait_for_it(resolver: Resolver) -> None:
    @standing
    async def test() -> None:
        resolver.fails = True
        asked = [asyncio.create_task(of("a.silent")) for _ in range(3)]
        await eventually(lambda: resolver.asked)
        resolver.answers.set()
        assert [type(each) for each in await ended(*asked)] == [socket.gaierror] * 3
        resolver.fails = False
        assert await of("a.silent")

    test()


def test_what_peers_have_looked_up_at_once_is_bounded(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunnel.signalling import lookup

    monkeypatch.setattr(lookup, "AT_ONCE", 3)

    @standing
    async def test() -> None:
        asked = [asyncio.create_task(of(f"a{number}.silent")) for number in range(3)]
        await eventually(lambda: len(resolver.asked) == 3)
        with pytest.raises(OSError, match="too many names"):
            await of("one-more.example")
        assert await of("ours.example", by_peer=False), "what the user has named is not kept from being found"
        resolver.answers.set()
        await ended(*asked)
        assert await of("one-more.example")

    test()


def test_a_look_up_for_which_there_is_no_thread_is_not_under_way(resolver: Resolver,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @standing
    async def test() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="no thread"):
                await of("a.example")
        assert await of("a.example")

    test()


@standing
async def test_a_part_of_a_name_may_be_too_long() -> None:
    with pytest.raises(OSError, match="its host is not a name"):
        await of("a" * 64 + ".example")
