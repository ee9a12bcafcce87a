# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent: how many connections it serves at a time. They are real, over loopback; what answers is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base import log
from migrator.base.run import started
from migrator.record import grant
from migrator.remote import agent_service
from migrator.remote.agent_service import CONNECTIONS_EACH, CONNECTIONS_MAX, PACE, Places
from tests.tunnel.clock import eventually, pass_time, standing
from tests.tunnel.fake_tunnel import FakeTunnel, free_port
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peers
from tunnel.session import inner_service
from tunnel.session.inner_service import Purpose
from tunnel.tunnel_errors import TunnelBroken

HOSTA, HOSTC = (Identity.generate().public for _ in range(2))


@dataclasses.dataclass
class Paired:
    public: PublicIdentity
    name: str = "hosta"


@contextlib.asynccontextmanager
async def sessions(places: Places, *peers: PublicIdentity) -> AsyncIterator[list[Any]]:
    """A tunnel for each, whose connections are served."""
    found = []
    async with contextlib.AsyncExitStack() as stack:
        for public in peers:
            tunnel: Any = FakeTunnel(free_port(), peer=Paired(public))  # type: ignore[arg-type]
            task = tunnel.served = asyncio.create_task(agent_service._serve(places, tunnel))
            await eventually(lambda: task.done() or is_taken(tunnel.port))  # noqa: B023 -- at once
            assert not task.done()
            stack.push_async_callback(asyncio.wait, [task])
            stack.callback(task.cancel)
            tunnel.kept = stack.enter_context(contextlib.ExitStack())  # connections, which end before
            found.append(tunnel)
        yield found


def is_taken(port: int) -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(("::1", port))
        except OSError:
            return True
    return False


@pytest.fixture(autouse=True)
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peers:
    """Whom this host is paired with."""
    monkeypatch.setattr("tunnel.identity.private_files.STATE", tmp_path / "state")
    found = Peers(tmp_path / "state" / "peers")
    found.pin("hosta", HOSTA)
    found.pin("hostc", HOSTC)
    return found


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is being done for connections; it says hello, and ends with them."""
    begun: list[str] = []

    def work(what: str, connection: socket.socket) -> None:
        begun.append(what)
        try:
            with connection:
                connection.sendall(b"hello")
                while connection.recv(100):
                    pass
        finally:
            begun.remove(what)

    monkeypatch.setattr(agent_service, "_migrate", lambda peer, connection: work("migrate", connection))
    monkeypatch.setattr(agent_service, "_bench", lambda peer, connection: work("bench", connection))
    return begun


async def looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the sessions have looked what their peers may do."""
    looks: list[bytes] = []
    honest = grant.of_peer_id

    def look(peer: bytes) -> grant.Grant:
        looks.append(peer)
        return honest(peer)

    with monkeypatch.context() as context:
        context.setattr(grant, "of_peer_id", look)
        pass_time(agent_service.LOOK_INTERVAL)
        await eventually(lambda: HOSTA.id in looks)
    await asyncio.sleep(0)


async def served(tunnel: Any, purpose: Purpose) -> socket.socket | None:
    """A connection that is answered; None where it is ended at once."""
    try:
        connection = await inner_service.connect(tunnel, purpose)
    except TunnelBroken:  # its end came with the proof
        return None
    tunnel.kept.enter_context(connection)
    with contextlib.suppress(ConnectionResetError):
        if await asyncio.to_thread(connection.recv, 100) == b"hello":
            return connection
    return None


@standing
async def test_a_peer_has_only_so_many_connections(working: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all its sessions, whatever they are for; nothing is started for one more."""
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", warned.append)
    async with sessions(Places(), HOSTA, HOSTA, HOSTC) as (one, two, other):
        kept = []
        for number in range(CONNECTIONS_EACH):
            tunnel, purpose = (one, Purpose.MIGRATE) if number % 2 else (two, Purpose.BENCH)
            kept.append(await served(tunnel, purpose))
        assert all(kept)
        for tunnel in (one, two):
            for purpose in Purpose:
                assert await served(tunnel, purpose) is None
        assert len(working) == CONNECTIONS_EACH
        assert len(warned) == 2 and all("hosta" in text for text in warned), "each session says it once"
        assert await served(other, Purpose.MIGRATE), "another peer is not hit"
        assert kept[0]
        kept[0].close()
        while not await served(one, Purpose.MIGRATE):  # free once the loop has heard that the work is done
            pass
        assert await served(one, Purpose.MIGRATE) is None


@standing
async def test_all_together_have_only_so_many(working: list[str], peers: Peers) -> None:
    many = [Identity.generate().public for _ in range(CONNECTIONS_MAX // CONNECTIONS_EACH + 1)]
    for number, public in enumerate(many):
        peers.pin(f"host{number}", public)
    async with sessions(Places(), *many) as tunnels:
        for tunnel in tunnels[:-1]:
            for _ in range(CONNECTIONS_EACH):
                assert await served(tunnel, Purpose.MIGRATE)
        assert await served(tunnels[-1], Purpose.MIGRATE) is None
        assert len(working) == CONNECTIONS_MAX


@standing
async def test_a_peer_that_connects_in_a_loop_has_nothing_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection, however short, would be a process."""
    started, warned = Counter[bytes](), list[str]()

    def ended_at_once(peer: bytes, connection: socket.socket) -> None:
        started[peer] += 1
        with connection:
            connection.sendall(b"hello")

    monkeypatch.setattr(agent_service, "_migrate", ended_at_once)
    monkeypatch.setattr(log, "warning", warned.append)
    places = Places()

    async def one_after_the_other(tunnel: Any, count: int) -> None:
        for _ in range(count):
            await served(tunnel, Purpose.MIGRATE)
            while places._taken.total():
                await asyncio.sleep(0)

    async with sessions(places, HOSTA, HOSTA, HOSTC) as (one, two, other):
        for tunnel in (one, two):
            await one_after_the_other(tunnel, 15)
        assert started[HOSTA.id] == PACE.burst
        assert warned == ["hosta connects more often than is allowed"]
        await one_after_the_other(other, 1)
        assert started[HOSTC.id] == 1, "another peer is not hit"
        pass_time(3 / PACE.per_second)
        await one_after_the_other(one, 5)
        assert started[HOSTA.id] == PACE.burst + 3


@standing
async def test_what_cannot_be_started_takes_no_place(working: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    places, honest = Places(), agent_service._in_thread

    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with sessions(places, HOSTA) as (tunnel,):
        monkeypatch.setattr(agent_service, "_in_thread", none_left)
        for _ in range(CONNECTIONS_EACH + 1):
            assert await served(tunnel, Purpose.MIGRATE) is None
        monkeypatch.setattr(agent_service, "_in_thread", honest)
        assert await served(tunnel, Purpose.MIGRATE)


@pytest.mark.parametrize("paired", [False, True])
def test_nothing_is_started_for_who_may_ask_nothing(
    paired: bool, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that was removed while its tunnel stood. One that may not move anything here hears that it may not."""
    if not paired:
        peers.remove("hosta")
    programs: list[list[str]] = []

    def start(argv: list[str], **_: Any) -> contextlib.AbstractContextManager[Any]:
        programs.append(argv)
        raise OSError

    monkeypatch.setattr(agent_service, "started", start)
    ours, theirs = socket.socketpair()
    with ours, contextlib.suppress(OSError):
        agent_service._migrate(HOSTA.id, theirs)
    assert theirs.fileno() == -1
    assert bool(programs) is paired
    assert grant.of_peer_id(HOSTA.id).ask is paired


@pytest.mark.parametrize("paired", [False, True])
def test_nothing_is_measured_for_who_may_ask_nothing(paired: bool, peers: Peers) -> None:
    if not paired:
        peers.remove("hosta")
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"x" * 100)
        ours.shutdown(socket.SHUT_WR)
        agent_service._bench(HOSTA.id, theirs)
        assert theirs.fileno() == -1
        try:
            answer = ours.recv(100)
        except ConnectionResetError:  # what it has sent was not read
            answer = b""
        assert answer == ((100).to_bytes(8) if paired else b"")


@standing
@pytest.mark.parametrize("removed", [False, True])
async def test_who_may_ask_no_more_loses_its_sessions(
    removed: bool, working: list[str], peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the connections over them, which it could keep for ever; not those of others, nor for what is added."""
    for name in ("hosta", "hostc"):
        peers.allow(name, ["receive"])
    async with sessions(Places(), HOSTA, HOSTC) as (one, other):
        for tunnel in (one, other):
            assert await served(tunnel, Purpose.MIGRATE)
        peers.allow("hosta", ["receive", "hooks"])
        peers.rename("hosta", "attic")
        await looked(monkeypatch)
        assert await served(one, Purpose.MIGRATE) and len(working) == 3
        peers.remove("attic") if removed else peers.allow("attic", [])
        pass_time(agent_service.LOOK_INTERVAL)
        await one.served
        assert len(working) == 1
        assert not other.served.done() and await served(other, Purpose.MIGRATE)


@standing
async def test_a_peer_without_a_permission_keeps_its_session(
    working: list[str], peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may ask how the migrations stand that went to it; also while somebody mends the store of peers."""
    async with sessions(Places(), HOSTA) as (tunnel,):
        text = peers.path.read_text()
        for store in ("nonsense\n", text):
            peers.path.write_text(store)
            await looked(monkeypatch)
        assert await served(tunnel, Purpose.MIGRATE) and not tunnel.served.done()


@standing
async def test_who_was_removed_while_its_tunnel_came_up_is_not_served(peers: Peers) -> None:
    peers.remove("hosta")
    tunnel: Any = FakeTunnel(free_port(), peer=Paired(HOSTA))  # type: ignore[arg-type]
    await agent_service._serve(Places(), tunnel)


def test_what_lies_where_the_agent_was_typed_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user may put a module into /tmp, and root may stand there."""
    for module in ("json.py", "migrator.py"):
        (tmp_path / module).write_text("import sys\nsys.exit('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def shows_help(argv: list[str], **given: Any) -> contextlib.AbstractContextManager[Any]:
        return started([*argv, "--help"], **given)

    monkeypatch.setattr(agent_service, "started", shows_help)
    ours, theirs = socket.socketpair()
    with ours:
        agent_service._migrate(HOSTA.id, theirs)
        assert ours.recv(1 << 16).startswith(b"usage: migrator serve")
