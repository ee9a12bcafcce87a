# SPDX-License-Identifier: GPL-2.0-or-later
"""Tunnels through real NATs: representative pairs (bench/nat_matrix has all, and how fast), the agent, healing, what is
left behind.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.nats import INITIATOR, RESPONDER, Nats
from harness.rig import Rig, Running, wait_for
from tests.effort import tries
from tests.rig.held import held
from tests.rig.nat_rig import left
from tests.rig.undisturbed import undisturbed

pytest_plugins = ["tests.rig.nat_rig"]

NO_DROP = "no-input-drop"
PING = ("migrator", "tunnel", "ping", RESPONDER)
BENCH = ("migrator", "tunnel", "bench", RESPONDER, "--seconds", "100000")  # until somebody ends it
MIB = 1 << 20
nightly = pytest.mark.nightly  # bench/nat_matrix has all pairs
PAIRS = [
    pytest.param("full-cone", "port-restricted", "direct", marks=nightly),
    pytest.param("port-restricted", "port-restricted", "direct", marks=nightly),  # all tests below have that one
    (f"port-restricted,{NO_DROP}", f"port-restricted,{NO_DROP}", "direct"),
    ("double", f"port-restricted,{NO_DROP}", "direct"),
    pytest.param(f"symmetric,{NO_DROP}", f"address-restricted,{NO_DROP}", "direct", marks=nightly),
    ("full-cone", "symmetric", "direct"),
    ("symmetric", "symmetric", "relay"),
    pytest.param("blocked", "port-restricted", "relay", marks=nightly),
    ("blocked", "blocked", "relay"),
]
SEARCHED = [
    ("symmetric", "port-restricted"),
    pytest.param(f"port-restricted,{NO_DROP}", f"symmetric,{NO_DROP}", marks=nightly),
]


@pytest.mark.parametrize(("a", "b", "path"), PAIRS)
def test_pair(nats: Nats, a: str, b: str, path: str) -> None:
    nats.set("a", a)
    nats.set("b", b)
    with nats.agent():
        told = undisturbed(lambda: pinged(nats, path))
    # At once: no port was searched for, no direct path waited for in vain.
    assert told["reason"]
    assert not re.search("guessed port|no direct path was found", told["reason"])
    assert 1280 <= told["mtu"] <= 1420
    assert told["via"] == ("tcp" if a == "blocked" else "udp")
    assert not left(nats.rig)


def pinged(nats: Nats, path: str, *options: str) -> dict[str, Any]:
    """What `tunnel ping` tells, once it has taken that path and something has come back through it."""
    told = nats.tunnel("ping", *options)
    assert told.get("path") == path, told
    assert told["rtt_ms"] is not None, told
    return told


@pytest.mark.parametrize(("a", "b"), SEARCHED)
def test_symmetric_against_port_restricted(nats: Nats, a: str, b: str) -> None:
    nats.set("a", a)
    nats.set("b", b)
    with nats.agent():
        reasons: list[str] = []
        # The symmetric side cannot tell a guess from none where the port is that of its first socket, of 257.
        while len(reasons) < 3 and not any("guessed port" in each for each in reasons):
            told = undisturbed(lambda: pinged(nats, "direct", "--path", "direct-only"))
            reasons.append(told["reason"])
    assert "guessed port" in reasons[-1], reasons


@pytest.mark.parametrize("host", [INITIATOR, RESPONDER])
def test_killed(nats: Nats, host: str) -> None:
    """After kill -9 of either side the next command leaves nothing of the old tunnel, and works."""
    rig = nats.rig
    for side in ("a", "b"):
        nats.set(side, "port-restricted")

    def killed() -> None:
        with nats.agent() as agent, rig.start(INITIATOR, *BENCH) as running:
            wait_for(lambda: "is connected" in agent.stderr, "a tunnel")
            victim = agent if host == RESPONDER else running
            victim.signal(signal.SIGKILL)
            victim.process.wait()
            if host == INITIATOR:
                pinged(nats, "direct")
            else:
                running.signal(signal.SIGINT)
                running.wait()
                with nats.agent():
                    pinged(nats, "direct")

    undisturbed(killed)
    assert not left(rig)


def test_once(nats: Nats) -> None:
    for side in ("a", "b"):
        nats.set(side, "port-restricted")

    def once() -> None:
        with nats.rig.start(RESPONDER, "migrator", "agent", "--once") as running:
            wait_for(lambda: "waiting at" in running.stderr, "an agent that waits")
            pinged(nats, "direct")
            running.wait().expect(0)
        assert nats.tunnel("ping")["error"]["code"] == "peer-absent"

    undisturbed(once)


def test_interrupted(nats: Nats) -> None:
    """Ctrl-C while a tunnel is made leaves nothing: where a program is being started for it, and at any moment."""
    rig = nats.rig
    for side in ("a", "b"):
        nats.set(side, "port-restricted")

    def while_started(program: str) -> None:
        with held(rig, INITIATOR, program) as hold, rig.start(INITIATOR, *PING) as running:
            wait_for(lambda: hold.waits() or running.process.poll() is not None, f"{program} is started")
            assert running.process.poll() is None, running.stderr
            running.signal(signal.SIGINT)
            hold.release()
            assert running.wait().status != 0

    def after(seconds: float) -> None:
        with rig.start(INITIATOR, *PING) as running:
            time.sleep(seconds)
            running.signal(signal.SIGINT)
            outcome = running.wait()
        # -2: before `rig exec` had started anything. A session that nobody ends stays one of a peer's for a while.
        expected = outcome.status in (0, 130, -signal.SIGINT) or "Interrupt" in outcome.stderr
        assert expected or "too many sessions" in outcome.stderr, str(outcome)

    with nats.agent():
        for program in ("nft", "wireguard-go"):
            undisturbed(lambda: while_started(program))  # noqa: B023  # called within this round
            assert not [line for line in left(rig) if line.startswith(INITIATOR)]
        for _ in range(tries(2, 20)):
            after(random.uniform(0.1, 0.6))
            assert not [line for line in left(rig) if line.startswith(INITIATOR)]
        wait_for(lambda: nats.tunnel("ping").get("path") == "direct", "a place for another session")
    assert not left(rig)


# --- With one agent for all of them ---


def test_policies(nats: Nats, agent: Running) -> None:
    for path in ("relay", "direct"):
        undisturbed(lambda: pinged(nats, path, "--path", f"{path}-only"))  # noqa: B023  # called within this round


def test_no_way_without_a_relay(nats: Nats, agent: Running) -> None:
    nats.set("a", "blocked")

    def refused() -> None:
        told = nats.tunnel("ping", "--path", "direct-only")
        assert told["error"]["code"] == "no-path"
        assert "blocks outgoing UDP" in told["error"]["message"]

    undisturbed(refused)


def standing(rig: Rig, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rig.migrator(host, "tunnel", "status", "--json").json["tunnels"]
    return found


@contextlib.contextmanager
def benched(rig: Rig, agent: Running, *options: str) -> Iterator[Running]:
    """Data goes through a tunnel that both sides have. At the end a Ctrl-C, which takes everything down."""
    before = agent.stderr.count("is connected")
    with rig.start(INITIATOR, *BENCH, *options) as running:
        wait_for(lambda: agent.stderr.count("is connected") > before or running.process.poll() is not None, "a tunnel")
        assert running.process.poll() is None, running.stderr
        yield running
        running.signal(signal.SIGINT)
        running.wait().expect(128 + signal.SIGINT)


def received(rig: Rig) -> int:
    """Bytes that have come through the tunnel to the responder."""
    return int(rig.sh(RESPONDER, "cat /sys/class/net/mig-*/statistics/rx_bytes"))


STRANGER = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
hello = sock.recv(100)
sock.sendall(bytes([1]) + bytes(64))
print(hello[:4].decode(), len(sock.recv(100)))
"""


def test_a_tunnel_that_stands(nats: Nats, agent: Running) -> None:
    """Its status on both sides. And any user of the initiator's host, who can reach the responder's tunnel address,
    gets nothing through it: the service there wants the secret."""
    rig = nats.rig
    assert rig.migrator(INITIATOR, "tunnel", "status", RESPONDER, "--json").expect(0).json == {
        "tunnels": [], "waits": {RESPONDER: True},
    }

    def stands() -> None:
        with benched(rig, agent):
            for host, peer in ((INITIATOR, RESPONDER), (RESPONDER, INITIATOR)):
                wait_for(lambda: standing(rig, host), f"a tunnel on {host}")  # noqa: B023  # called within this round
                (tunnel,) = standing(rig, host)
                assert (tunnel["peer"], tunnel["path"]) == (peer, "direct")
            wait_for(lambda: "[fd" in rig.sh(RESPONDER, "ss -Hlnt"), "it listens")
            listening = rig.sh(RESPONDER, "ss -Hlnt")
            address, port = re.findall(r"\[(fd.*)\]:(\d+)", listening)[0]
            asked = ("setpriv", "--reuid=65534", "--clear-groups", "python3", "-c", STRANGER, address, port)
            assert rig.exec(INITIATOR, *asked).stdout.split() == ["MGT1", "0"]

    undisturbed(stands)


@pytest.mark.nightly  # test_tunnel_moves.py has one with a migration
def test_rebind(nats: Nats, agent: Running) -> None:
    """Each router in turn gets another address in the middle of a transfer: that is noticed and healed, and data goes
    through again."""
    rig = nats.rig

    def healed() -> None:
        with benched(rig, agent, "--json", "-v") as running:
            for count, side in enumerate(("a", "b"), 1):
                nats.rebind(side)
                wait_for(lambda: running.stderr.count("alive again") >= count, "it is healed")  # noqa: B023
                before = received(rig)
                wait_for(lambda: received(rig) > before + MIB, "data goes through it again")  # noqa: B023
            said = [json.loads(line)["message"] for line in running.stderr.splitlines()]
            kinds = [kind for line in said for kind in ("is dead", "is alive again") if kind in line]
            assert kinds == ["is dead", "is alive again"] * (len(kinds) // 2)
            wait_for(lambda: standing(rig, INITIATOR)[0]["heals"] >= 2, "its status tells so")
            assert standing(rig, INITIATOR)[0]["path"] == "direct"

    undisturbed(healed)


def test_a_removed_peer_gets_nothing(nats: Nats, agent: Running) -> None:
    """Neither does it keep what it had when it was removed."""
    rig = nats.rig
    peers = rig.read(RESPONDER, "/var/lib/migrator/peers")
    try:
        connected = agent.stderr.count("is connected")
        with rig.start(INITIATOR, *BENCH) as running:
            wait_for(lambda: agent.stderr.count("is connected") > connected, "a tunnel")
            rig.migrator(RESPONDER, "peer", "remove", INITIATOR).expect(0)
            wait_for(lambda: "its session is ended" in agent.stderr, "its session is ended")
            wait_for(lambda: not standing(rig, RESPONDER), "and its tunnel removed")
            assert "mig-" not in rig.sh(RESPONDER, "ip -br link; nft list tables")
            running.signal(signal.SIGINT)  # it may try to heal
            assert running.wait().status != 0
        before = agent.stderr.count("is connected")
        with rig.start(INITIATOR, *PING) as running:
            wait_for(lambda: "not paired" in agent.stderr, "a stranger has called")
            running.signal(signal.SIGINT)  # it waits for an answer
            assert running.wait().status != 0
        assert agent.stderr.count("is connected") == before
    finally:
        rig.put(RESPONDER, "/var/lib/migrator/peers", peers)
        rig.sh(RESPONDER, "chmod 600 /var/lib/migrator/peers")
