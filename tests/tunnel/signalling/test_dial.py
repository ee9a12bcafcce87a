# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this host connects to when a paired peer has named the server, and when its own user has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.tunnel.clock import standing
from tests.tunnel.serving import LOOPBACK, serving
from tunnel.candidates import candidate
from tunnel.identity import tunnel_config
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer, Peers
from tunnel.identity.tunnel_config import Server
from tunnel.signalling import dial, lookup
from tunnel.signalling.link import Link
from tunnel.tunnel_errors import RendezvousUnavailable

HERE, LAN, OPEN = "127.0.0.1", "192.168.7.9", "198.51.100.9"


@pytest.mark.parametrize(("address", "port", "source", "can"), [
    ("198.51.100.5", 443, OPEN, True), ("198.51.100.5", 1024, LAN, True), ("2001:db8::5", 8443, None, True),
    # Services that a rendezvous is not.
    ("198.51.100.5", 22, OPEN, False), ("198.51.100.5", 25, OPEN, False), ("198.51.100.5", 1023, OPEN, False),
    # This host alone, its neighbours, the provider's metadata; in each way to write it.
    ("127.0.0.1", 8443, HERE, False), ("127.9.9.9", 443, HERE, False), ("::1", 8443, "::1", False),
    ("::ffff:127.0.0.1", 8443, HERE, False), ("169.254.169.254", 443, OPEN, False), ("fe80::1%eth0", 443, None, False),
    ("0.0.0.0", 8443, HERE, False), ("::", 8443, "::1", False), ("224.0.0.1", 8443, OPEN, False),  # noqa: S104
    ("255.255.255.255", 8443, OPEN, False), ("64:ff9b::7f00:1", 8443, None, False),
    ("64:ff9b:1::a00:1", 8443, LAN, False),
    # A private network from within only.
    ("10.0.0.5", 8443, LAN, True), ("10.0.0.5", 8443, OPEN, False), ("192.168.7.1", 443, LAN, True),
    ("fd00::5", 8443, "2001:db8::9", False), ("fd00::5", 8443, "fd00::9", True), ("100.64.0.5", 443, None, False),
])
def test_what_a_peer_can_name(address: str, port: int, source: str | None, can: bool) -> None:
    assert dial.can_be_named(address, port, source) is can


def test_whose_choice_a_server_is(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers")
    peer = peers.pin("hostb", Identity.generate().public, ["wss://both.example", "wss://theirs.example"])
    ours = tunnel_config.parse_servers(["wss://ours.example", "wss://both.example"])
    assert [each.by_peer for each in (*peer.servers, *peers.get("hostb").servers)] == [True] * 4
    assert [each.by_peer for each in ours] == [False] * 2
    for found, order in ((tunnel_config.together(peer.servers, ours), "both theirs ours"),
                         (tunnel_config.together(ours, peer.servers), "ours both theirs")):
        assert [each.host for each in found] == [f"{name}.example" for name in order.split()]
        assert {each.host for each in found if each.by_peer} == {"theirs.example"}, "the user's own choice stays one"


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[Any]]]:
    """A port of this host's, and who has connected to it."""
    came: list[Any] = []

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(accepted, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("host", [LOOPBACK, "peers-choice.example"])
def test_a_peer_does_not_lead_this_host_to_itself(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an address, or by a name of its own that it lets mean whatever it likes when this host asks."""
    @standing
    async def test() -> None:
        resolves_to(monkeypatch, LOOPBACK)
        async with listening() as (port, came):
            url = f"wss://{host}:{port}#sha256:{'0' * 64}"
            (named,) = Peer("hostb", Identity.generate().public, (url,), 0.0).servers
            with pytest.raises(RendezvousUnavailable, match=f"a peer has named it, and {LOOPBACK}.*may not name"):
                await Link.open(named, 5)
            assert came == []
            with pytest.raises(RendezvousUnavailable):  # but the user may
                await Link.open(Server.parse(url), 5)
        assert len(came) == 1

    test()


@standing
async def test_the_address_that_can_be_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as there:
        monkeypatch.setattr(dial, "can_be_named", lambda address, port, source: address == LOOPBACK)
        resolves_to(monkeypatch, "169.254.169.254", LOOPBACK)
        (named,) = Peer("hostb", Identity.generate().public, (there.server.url,), 0.0).servers
        link = await Link.open(named, 5)
        assert link.address == LOOPBACK
        await link.close()


@standing
async def test_addresses_are_tried_in_their_order_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as there:
        resolves_to(monkeypatch, "::1", LOOPBACK)  # the rendezvous of this test is at the second one only
        link = await Link.open(there.server, 5)
        assert link.address == LOOPBACK
        await link.close()
    with pytest.raises(RendezvousUnavailable, match="its host is not a name"):
        await Link.open(Server.parse("wss://a..b"), 5)


@standing
async def test_an_address_waits_for_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up in threads, and a peer's may keep all of those waiting."""
    async with serving() as there:
        async def never(*_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(lookup, "addresses", never)
        await (await Link.open(there.server, 5)).close()


@standing
async def test_of_a_peers_name_one_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a second one were, its owner would learn of the first whether something listens there."""
    monkeypatch.setattr(dial, "can_be_named", lambda *_: True)
    async with listening() as (port, came):
        resolves_to(monkeypatch, "127.0.0.9", LOOPBACK)  # nothing listens at the first one
        ours = Server.parse(f"wss://both.example:{port}")
        with pytest.raises(RendezvousUnavailable, match=r"Connection refused \(at 127.0.0.9; .* no other is tried\)"):
            await Link.open(ours.of_peer(), 5)
        assert came == []
        with pytest.raises(RendezvousUnavailable):  # of the user's own every one
            await Link.open(ours, 5)
        assert len(came) == 1


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name means these; a name that IDNA refuses is refused as ever."""
    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        host.encode("idna")
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
                for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_towards_a_private_network_the_address_that_this_host_sends_from_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not any address that it has: the bridge of its own guests is a private network too."""
    monkeypatch.setattr(candidate, "source_towards", lambda _: OPEN)
    assert dial.why_not(Server.parse("wss://10.0.0.5").of_peer(), "10.0.0.5")
    assert not dial.why_not(Server.parse("wss://10.0.0.5"), "10.0.0.5")
    monkeypatch.setattr(candidate, "source_towards", lambda _: LAN)
    assert not dial.why_not(Server.parse("wss://10.0.0.5").of_peer(), "10.0.0.5")


@pytest.mark.parametrize(("host", "address", "taken"), [
    ("192.168.7.1", "192.168.7.1", True), ("[fd00::5]", "fd00::5", True), ("[FD00:0::5]", "fd00::5", True),
    ("rv.example", "192.168.7.1", False), ("rv.example", "100.64.0.5", False), ("rv.example", "fd00::5", False),
    ("rv.example", "64:ff9b:1::5", False), ("192.168.1793", "192.168.7.1", False), ("rv.example", "198.51.100.5", True),
])
def test_into_a_private_network_leads_an_address_and_no_name(monkeypatch: pytest.MonkeyPatch, host: str, address: str,
                                                             taken: bool) -> None:
    """Its owner lets a name mean what it likes, one host of this network after the other."""
    monkeypatch.setattr(candidate, "source_towards", lambda _: LAN if ":" not in address else "fd00::9")
    server = Server.parse(f"wss://{host}")
    assert (not dial.why_not(server.of_peer(), address)) is taken
    assert not dial.why_not(server, address), "the user's own may"
