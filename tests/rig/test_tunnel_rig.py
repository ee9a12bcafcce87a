# SPDX-License-Identifier: GPL-2.0-or-later
"""Tunnels through real NATs: representative pairs (bench/nat_matrix has all), the agent, healing, what is left behind.

A rig of its own, whose NAT types change while it runs; the session's other tests keep theirs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.harness import LXC_HOSTS, Rig, wait_for
from tests.rig.nats import INITIATOR, RESPONDER, Nats, pair
from tests.rig.test_migrate import arrived, events

NO_DROP = "no-input-drop"
SOON = 500.0  # ms, from the first probe to a direct path
PAIRS = [
    ("full-cone", "port-restricted", "direct"),
    ("port-restricted", "port-restricted", "direct"),
    (f"port-restricted,{NO_DROP}", f"port-restricted,{NO_DROP}", "direct"),
    ("double", f"port-restricted,{NO_DROP}", "direct"),
    (f"symmetric,{NO_DROP}", f"address-restricted,{NO_DROP}", "direct"),
    ("full-cone", "symmetric", "direct"),
    ("symmetric", "symmetric", "relay"),
    ("blocked", "port-restricted", "relay"),
    ("blocked", "blocked", "relay"),
]
SEARCHED = [("symmetric", "port-restricted"), (f"port-restricted,{NO_DROP}", f"symmetric,{NO_DROP}")]


@pytest.fixture(scope="module")
def nats() -> Iterator[Nats]:
    rig = Rig(f"{os.environ.get('MIGRATOR_RIG') or 'test'}-nat")
    try:
        yield Nats(rig)
    finally:
        if not os.environ.get("MIGRATOR_RIG_KEEP"):
            rig.down()


@pytest.fixture
def agent(nats: Nats) -> Iterator[Any]:
    """An agent between two port-restricted NATs; at the end nothing of a tunnel is left on either host."""
    for side in ("a", "b"):
        nats.set(side, "port-restricted")
    with nats.agent() as running:
        yield running
    assert not left(nats.rig)


def left(rig: Rig) -> list[str]:
    """What tunnels have left on the hosts."""
    script = """
        ip -o link show | grep -o 'mig-[0-9a-f]*' | sed 's/^/interface: /'
        nft list tables | grep mig- ; ls /var/run/wireguard 2>/dev/null; pgrep -l -r D,R,S,T wireguard-go
        find /run/migrator/tunnel* -type f 2>/dev/null; true"""
    return [f"{host}: {line}" for host in LXC_HOSTS for line in rig.sh(host, script).splitlines()]


@pytest.mark.parametrize(("a", "b", "path"), PAIRS)
def test_pair(nats: Nats, a: str, b: str, path: str) -> None:
    nats.set("a", a)
    nats.set("b", b)
    with nats.agent():
        told = nats.tunnel("ping")
    assert told.get("path") == path, told
    assert path == "relay" or told["connect_ms"] < SOON
    # At once: no port was searched for, no direct path waited for in vain.
    assert told["reason"]
    assert not re.search("guessed port|no direct path was found", told["reason"])
    assert told["rtt_ms"] < 500
    assert told["loss"] < 0.5  # the machine may stand still for as long as an echo is waited for
    assert 1280 <= told["mtu"] <= 1420
    assert told["via"] == ("tcp" if a == "blocked" else "udp")
    assert not left(nats.rig)


@pytest.mark.parametrize(("a", "b"), SEARCHED)
def test_symmetric_against_port_restricted(nats: Nats, a: str, b: str) -> None:
    nats.set("a", a)
    nats.set("b", b)
    with nats.agent():
        told = nats.tunnel("ping", "--path", "direct-only")
    assert told.get("path") == "direct", told
    assert "guessed port" in told["reason"]


def test_policies(nats: Nats, agent: Any) -> None:
    assert nats.tunnel("ping", "--path", "relay-only")["path"] == "relay"
    assert nats.tunnel("ping", "--path", "direct-only")["path"] == "direct"


def test_no_way_without_a_relay(nats: Nats, agent: Any) -> None:
    nats.set("a", "blocked")
    told = nats.tunnel("ping", "--path", "direct-only")
    assert told["error"]["code"] == "no-path"
    assert "lets no UDP out" in told["error"]["message"]


def standing(rig: Rig, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rig.migrator(host, "tunnel", "status", "--json").json["tunnels"]
    return found


def test_status(nats: Nats, agent: Any) -> None:
    rig = nats.rig
    assert rig.migrator(INITIATOR, "tunnel", "status", RESPONDER, "--json").expect(0).json == {
        "tunnels": [], "waits": {RESPONDER: True},
    }
    with rig.start(INITIATOR, "migrator", "tunnel", "bench", RESPONDER, "--seconds", "90") as running:
        for host, peer in ((INITIATOR, RESPONDER), (RESPONDER, INITIATOR)):
            wait_for(lambda: standing(rig, host), f"a tunnel on {host}")  # noqa: B023  # called within this round
            (tunnel,) = standing(rig, host)
            assert (tunnel["peer"], tunnel["path"]) == (peer, "direct")
        running.signal(2)  # and it takes everything down
        running.wait(60).expect(130)


@pytest.mark.parametrize("side", ["a", "b"])
def test_rebind(nats: Nats, agent: Any, side: str) -> None:
    """The router gets another address in the middle of a transfer: it goes on within three seconds."""
    rig = nats.rig
    with rig.start(INITIATOR, "migrator", "tunnel", "bench", RESPONDER, "--seconds", "8", "--json", "-v") as running:
        wait_for(lambda: "tunnel to" in running.stderr, "a tunnel")
        wait_for(lambda: agent.stderr.count("is connected"), "the other end of it")
        nats.rebind(side)
        outcome = running.wait(60).expect(0)
    assert outcome.json["heals"] >= 1
    assert outcome.json["path"] == "direct"
    lines = [json.loads(line) for line in outcome.stderr.splitlines()]
    dead = next(line["time"] for line in lines if "is dead" in line["message"])
    alive = next(line["time"] for line in lines if "alive again" in line["message"])
    assert alive - dead < 2.0  # it is called dead one second after the last echo


@pytest.mark.parametrize("host", [INITIATOR, RESPONDER])
def test_killed(nats: Nats, host: str) -> None:
    """After kill -9 of either side the next command leaves nothing of the old tunnel, and works."""
    rig = nats.rig
    for side in ("a", "b"):
        nats.set(side, "port-restricted")
    with nats.agent() as agent, \
            rig.start(INITIATOR, "migrator", "tunnel", "bench", RESPONDER, "--seconds", "200") as running:
        wait_for(lambda: "is connected" in agent.stderr, "a tunnel")
        (agent if host == RESPONDER else running).signal(9)
        (agent if host == RESPONDER else running).process.wait(60)
        if host == INITIATOR:
            assert nats.tunnel("ping")["path"] == "direct"
        else:
            running.signal(2)
            running.process.wait(60)
            with nats.agent():
                assert nats.tunnel("ping")["path"] == "direct"
    assert not left(rig)


def test_interrupted(nats: Nats, agent: Any) -> None:
    """Ctrl-C at any moment while a tunnel is made leaves nothing, on either side."""
    rig = nats.rig
    for delay in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5):
        with rig.start(INITIATOR, "migrator", "tunnel", "ping", RESPONDER) as running:
            time.sleep(delay)
            running.signal(2)
            outcome = running.wait(60)
            # -2: before `rig exec` had started anything. A session that nobody ends stays one of a peer's for a while.
            expected = outcome.status in (0, 130, -signal.SIGINT) or "Interrupt" in outcome.stderr
            assert expected or "too many sessions" in outcome.stderr, str(outcome)
        assert not [line for line in left(rig) if line.startswith(INITIATOR)]
    wait_for(lambda: not left(rig), "nothing left of them", 60)
    wait_for(lambda: nats.tunnel("ping").get("path") == "direct", "a place for another session", 60)


def test_once(nats: Nats) -> None:
    for side in ("a", "b"):
        nats.set(side, "port-restricted")
    rig = nats.rig
    with rig.start(RESPONDER, "migrator", "agent", "--once") as running:
        wait_for(lambda: "waiting at" in running.stderr, "an agent that waits")
        assert nats.tunnel("ping")["path"] == "direct"
        running.wait(60).expect(0)
    told = nats.tunnel("ping")
    assert told["error"]["code"] == "peer-absent"


def test_a_removed_peer_gets_nothing(nats: Nats, agent: Any) -> None:
    rig = nats.rig
    assert nats.tunnel("ping")["path"] == "direct"
    peers = rig.read(RESPONDER, "/var/lib/migrator/peers")
    try:
        rig.migrator(RESPONDER, "peer", "remove", INITIATOR).expect(0)
        told = nats.tunnel("ping")
        assert told["error"]["code"] == "peer-silent"
        assert "not paired" in agent.stderr
    finally:
        rig.put(RESPONDER, "/var/lib/migrator/peers", peers)
        rig.sh(RESPONDER, "chmod 600 /var/lib/migrator/peers")


def test_a_local_user_gets_nothing_through_the_tunnel(nats: Nats, agent: Any) -> None:
    """Any user of the initiator's host can reach the responder's tunnel address; the service wants the secret."""
    rig = nats.rig
    script = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
hello = sock.recv(100)
sock.sendall(bytes([1]) + bytes(64))
print(hello[:4].decode(), len(sock.recv(100)))
"""
    with rig.start(INITIATOR, "migrator", "tunnel", "bench", RESPONDER, "--seconds", "90") as running:
        wait_for(lambda: "is connected" in agent.stderr, "a tunnel")
        wait_for(lambda: "[fd" in rig.sh(RESPONDER, "ss -Hlnt"), "it listens")
        listening = rig.sh(RESPONDER, "ss -Hlnt").split()
        address, port = next(re.findall(r"\[(fd.*)\]:(\d+)", word)[0] for word in listening if word.startswith("[fd"))
        found = rig.exec(INITIATOR, "setpriv", "--reuid=65534", "--clear-groups", "python3", "-c", script, address,
                         port).stdout
        running.signal(2)
        running.wait(60).expect(130)
    assert found.split() == ["MGT1", "0"]


# --- Moving a container ---


@pytest.fixture
def guest(nats: Nats, agent: Any) -> Iterator[str]:
    """A container on the initiator, with a file large enough for something to happen while it is sent."""
    rig = nats.rig
    rig.guest(INITIATOR, "c1", "tick")
    yield "c1"
    try:
        wait_for(lambda: not left(rig), "the agent has taken its end down")  # `purge` kills it
    finally:
        resisting = rig.purge()
        pair(rig)  # that is gone too
    assert not resisting


def test_move(nats: Nats, guest: str) -> None:
    """Every stage with `-d peer:NAME`, across two port-restricted NATs."""
    rig, there = nats.rig, ("-d", f"peer:{RESPONDER}")
    rig.migrator(INITIATOR, "check", guest, *there).expect(0)
    rig.migrator(INITIATOR, "prepare-data", guest, *there).expect(0)
    rig.migrator(RESPONDER, "import-data", guest).expect(0)
    rig.migrator(INITIATOR, "create-dump", guest, *there).expect(0)
    rig.migrator(RESPONDER, "restore-dump", guest).expect(0)
    rig.migrator(INITIATOR, "finish", guest).expect(0)
    assert rig.probe(RESPONDER, guest)["intact"]


def test_a_peer_may_do_what_it_was_allowed(nats: Nats, guest: str) -> None:
    """The agent that waits already goes by what is said now; what a peer has begun stays its own."""
    rig, there = nats.rig, ("-d", f"peer:{RESPONDER}", "--json")
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "nothing").expect(0)
    for command in ("check", "prepare-data", "migrate"):
        refused = rig.migrator(INITIATOR, command, guest, *there).expect(41)
        assert refused.error["cure"].endswith(f"migrator peer allow {INITIATOR} receive")
    assert nats.tunnel("ping")["path"]  # paired it still is
    assert rig.sh(RESPONDER, "ls -A /pool").strip() == ""
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "receive", "--lxcpath", "/pool/elsewhere").expect(0)
    rig.migrator(INITIATOR, "prepare-data", guest, *there, "--destination-lxcpath", "/pool").expect(41)
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "receive").expect(0)
    rig.migrator(INITIATOR, "prepare-data", guest, *there).expect(0)
    (arriving,) = rig.migrator(RESPONDER, "status", "--json").expect(0).json["migrations"]
    assert arriving["peer"] == f"peer:{INITIATOR}"
    rig.migrator(INITIATOR, "rollback", guest).expect(0)
    assert rig.probe(INITIATOR, guest)["intact"]


def test_rebind_during_prepare_data(nats: Nats, guest: str) -> None:
    """A router gets another address while the disk is sent: the tunnel heals, and every byte arrives."""
    rig, big = nats.rig, f"/pool/{guest}/rootfs/big"
    rig.sh(INITIATOR, f"head -c {160 << 20} /dev/urandom >{big}; sync {big}")
    command = ("migrator", "prepare-data", guest, "-d", f"peer:{RESPONDER}", "--json", "-v", "--bwlimit", "12M")
    with rig.start(INITIATOR, *command) as running:
        wait_for(lambda: arrived(rig) > 8 << 20, "some of it has arrived")
        nats.rebind("a")
        outcome = running.wait(120).expect(0)
    assert "alive again" in outcome.stderr, "it was over before the path died"
    rig.migrator(RESPONDER, "import-data", guest).expect(0)
    sums = [rig.sh(host, "find /pool -name big -exec sha256sum {} +").split()[0] for host in (INITIATOR, RESPONDER)]
    assert sums[0] == sums[1]
    rig.migrator(INITIATOR, "rollback", guest).expect(0)
    assert rig.probe(INITIATOR, guest)["intact"]


def test_migrate_goes_on_through_a_new_tunnel(nats: Nats, guest: str) -> None:
    """What serves on the other host is killed while the disk is sent: a new tunnel, and on where it was."""
    rig = nats.rig
    rig.sh(INITIATOR, f"head -c {48 << 20} /dev/urandom >/pool/{guest}/rootfs/blob")
    command = ("migrator", "migrate", guest, "-d", f"peer:{RESPONDER}", "--json", "--bwlimit", "10M")
    with rig.start(INITIATOR, *command) as running:
        wait_for(lambda: arrived(rig) > 12 << 20, "some of it has arrived")
        rig.kill_serve()
        outcome = running.wait(120).expect(0)
    assert len(events(outcome, "waiting")) == len(events(outcome, "reconnected")) == 1
    assert int(str(events(outcome, "round")[0]["resumed_bytes"])) >= 8 << 20
    assert rig.probe(RESPONDER, guest)["intact"]
