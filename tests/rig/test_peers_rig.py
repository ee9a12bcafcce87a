# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing on the rig: over the rendezvous across two NATs, and over SSH where both hosts see each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from harness.nats import Nats, pair
from harness.rig import Outcome, Rig, Running, wait_for
from tests.rig.undisturbed import undisturbed

pytest_plugins = ["tests.rig.nat_rig"]

STATE = "/var/lib/migrator"
CODE = re.compile(r"\d+-[a-z]+-[a-z]+")


def forget(rig: Rig) -> None:
    """Two hosts that do not know each other, nor who they were."""
    for host in ("hosta", "hostb"):
        rig.sh(host, f"rm -f {STATE}/peers {STATE}/identity")


@pytest.fixture(scope="module")
def behind(nats: Nats) -> Iterator[Nats]:
    """The hosts behind two NATs, which are paired again in the end."""
    for side in ("a", "b"):
        nats.set(side, "port-restricted")
    yield nats
    forget(nats.rig)
    undisturbed(lambda: pair(nats.rig))


def peers(rig: Rig, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rig.migrator(host, "peer", "list", "--json").expect(0).json["peers"]
    return found


def own(rig: Rig, host: str) -> str:
    return str(rig.migrator(host, "peer", "show", "--json").expect(0).json["own"]["fingerprint"])


def code_of(invite: Running) -> str:
    wait_for(lambda: CODE.match(invite.stdout), "a code")
    return invite.stdout.split()[0]


def test_over_ssh(rig: Rig) -> None:
    forget(rig)
    added = rig.migrator("hosta", "peer", "add", "root@hostb", "--json").expect(0)
    assert added.json["peer"]["fingerprint"] == own(rig, "hostb")
    assert [(peer["name"], peer["fingerprint"]) for peer in peers(rig, "hostb")] == [("hosta", own(rig, "hosta"))]
    # Both know where the other can be rung: the rendezvous that the rig has configured.
    for host in ("hosta", "hostb"):
        assert peers(rig, host)[0]["rendezvous"] == [rig.read(host, "/etc/migrator/tunnel.conf").split()[-1]]
    # Once more changes nothing.
    rig.migrator("hosta", "peer", "add", "root@hostb").expect(0)
    # The other host's identity has changed: nothing is pinned on either side.
    rig.sh("hostb", f"rm {STATE}/identity {STATE}/peers")
    changed = rig.migrator("hosta", "peer", "add", "root@hostb", "--json").expect(71)
    assert changed.error["code"] == "identity-changed"
    assert peers(rig, "hostb") == []
    # This host's identity has changed: the other refuses it.
    rig.migrator("hosta", "peer", "remove", "hostb").expect(0)
    rig.migrator("hosta", "peer", "add", "root@hostb").expect(0)
    rig.sh("hosta", f"rm {STATE}/identity {STATE}/peers")
    refused = rig.migrator("hosta", "peer", "add", "root@hostb").expect(74)
    assert "has changed" in refused.stderr
    assert peers(rig, "hosta") == []
    forget(rig)


@pytest.mark.nightly  # the README is typed behind two NATs
def test_across_two_nats(behind: Nats) -> None:
    rig = behind.rig

    def paired() -> tuple[Outcome, Outcome, str]:
        forget(rig)
        with rig.start("hosta", "migrator", "peer", "invite", "--name", "hostb") as invite:
            code = code_of(invite)
            join = rig.migrator("hostb", "peer", "join", code, "--name", "hosta", "--json").expect(0)
            return join, invite.wait().expect(0), code

    join, invited, code = undisturbed(paired)
    assert join.json["peer"]["fingerprint"] == own(rig, "hosta")
    assert own(rig, "hostb") in invited.stdout
    assert [peer["name"] for peer in peers(rig, "hosta")] == ["hostb"]
    # Nothing secret in what was said, nor in what the rendezvous has written.
    said = invited.stdout + invited.stderr + join.stdout + join.stderr
    said += rig.sh("rendezvous", "cat /var/log/rendezvous.log /run/rendezvous.json")
    for host in ("hosta", "hostb"):
        private = [line.split()[1] for line in rig.read(host, f"{STATE}/identity").splitlines()[1:]]
        assert len(private) == 2
        assert not any(secret in said for secret in private)
        assert rig.sh(host, f"stat -c %a {STATE}/identity").strip() == "600"
    assert code.partition("-")[2] not in join.stdout + rig.sh("rendezvous", "cat /var/log/rendezvous.log")


@pytest.mark.nightly  # test_pairing.py has it without NAT
def test_a_wrong_code_burns_across_two_nats(behind: Nats) -> None:
    rig = behind.rig

    def burned() -> str:
        forget(rig)
        with rig.start("hosta", "migrator", "peer", "invite", "--name", "hostb") as invite:
            code = code_of(invite)
            rig.migrator("hostb", "peer", "join", f"{code.partition('-')[0]}-wrong-words", "--name",
                         "hosta").expect(74)
            assert "wrong" in invite.wait().expect(74).stderr
            return code

    again = rig.migrator("hostb", "peer", "join", undisturbed(burned), "--name", "hosta").expect(74)
    assert "nobody waits" in again.stderr
    assert peers(rig, "hosta") == peers(rig, "hostb") == []


def test_the_rendezvous_comes_back_with_its_fingerprint(behind: Nats) -> None:
    rig = behind.rig
    before = rig.read("hosta", "/etc/migrator/tunnel.conf")
    rig.sh("rendezvous", "pid=$(cat /run/rendezvous.pid); kill $pid; while [ -e /proc/$pid ]; do sleep 0.02; done")
    down = rig.migrator("hosta", "peer", "invite", "--name", "hostb", "--json").expect(73)
    assert down.error["code"] == "rendezvous-unavailable"
    behind.up()
    assert rig.read("hosta", "/etc/migrator/tunnel.conf") == before

    def paired() -> None:
        forget(rig)
        pair(rig)

    undisturbed(paired)


def test_what_knocks_from_the_net_gets_nothing(behind: Nats) -> None:
    """The client, which nobody knows, at the rendezvous' port: TLS, and then a goodbye."""
    script = (
        "import socket, ssl\n"
        "context = ssl.create_default_context(); context.check_hostname = False\n"
        "context.verify_mode = ssl.CERT_NONE\n"
        "for said in (b'GET / HTTP/1.1\\r\\n\\r\\n', b'\\0' * 20000 + b'\\n'):\n"
        "    sock = context.wrap_socket(socket.create_connection(('198.51.100.5', 443), 60))\n"
        "    try:\n"
        "        sock.sendall(said)\n"
        "        print(len(sock.recv(4096)))\n"
        "    except (ConnectionError, ssl.SSLError):  # the door is shut before all has been said\n"
        "        print(0)\n"
    )
    lengths = behind.rig.exec("client", "python3", "-c", script).stdout.split()
    assert len(lengths) == 2 and all(int(length) < 1000 for length in lengths)
