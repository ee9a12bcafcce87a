# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers that move through a tunnel, between two hosts behind NATs, with what happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.nats import INITIATOR, RESPONDER, Nats, pair
from harness.rig import Rig, Running, wait_for
from tests.rig.held import held_stream
from tests.rig.moves import arrived, events
from tests.rig.nat_rig import left
from tests.rig.undisturbed import undisturbed

pytest_plugins = ["tests.rig.nat_rig"]

MIB = 1 << 20


@pytest.fixture(scope="module")
def guests(nats: Nats, waiting: Running) -> Iterator[Rig]:
    """Hosts whose guests go in the end, and the agent with them."""
    yield nats.rig
    wait_for(lambda: not left(nats.rig), "the agent has taken its ends down")
    resisting = nats.rig.purge()
    undisturbed(lambda: pair(nats.rig))  # that is gone too
    assert not resisting


@pytest.mark.nightly  # the README is typed behind two NATs
def test_move(guests: Rig, agent: Running) -> None:
    """Every stage with `-d peer:NAME`, across two port-restricted NATs."""
    rig, guest, there = guests, "c2", ("-d", f"peer:{RESPONDER}")
    rig.guest(INITIATOR, guest, "tick", ip="10.0.3.102")
    checked = rig.migrator(INITIATOR, "check", guest, *there)
    assert checked.status in (0, 1) and f"{guest} can move" in checked.stdout, str(checked)  # to another network
    for host, stage, options in (
        (INITIATOR, "prepare-data", there), (RESPONDER, "import-data", ()),
        (INITIATOR, "create-dump", there), (RESPONDER, "restore-dump", ()), (INITIATOR, "finish", ()),
    ):
        undisturbed(lambda: rig.migrator(host, stage, guest, *options).expect(0))  # noqa: B023  # within this round
    assert rig.probe(RESPONDER, guest)["intact"]


@pytest.mark.nightly
def test_rebind_during_prepare_data(nats: Nats, guests: Rig, agent: Running) -> None:
    """A router gets another address while the disk is sent: the tunnel heals, and every byte arrives."""
    rig, guest, big = guests, "c1", "/pool/c1/rootfs/big"
    rig.guest(INITIATOR, guest, "tick")
    rig.sh(INITIATOR, f"head -c {24 * MIB} /dev/urandom >{big}; sync {big}")

    def sent() -> None:
        with held_stream(rig, INITIATOR, 12 * MIB) as stream, rig.start(
                INITIATOR, "migrator", "prepare-data", guest, "-d", f"peer:{RESPONDER}", "--json", "-v") as running:
            wait_for(lambda: arrived(rig) >= 8 * MIB or running.process.poll() is not None, "some of it has arrived")
            nats.rebind("a")
            wait_for(lambda: "alive again" in running.stderr or running.process.poll() is not None, "it is healed")
            stream.release()
            running.wait().expect(0)

    undisturbed(sent)
    rig.migrator(RESPONDER, "import-data", guest).expect(0)
    sums = [rig.sh(host, "find /pool -name big -exec sha256sum {} +").split()[0] for host in (INITIATOR, RESPONDER)]
    assert sums[0] == sums[1]
    undisturbed(lambda: rig.migrator(INITIATOR, "rollback", guest).expect(0))
    assert rig.probe(INITIATOR, guest)["intact"]


def test_migrate_goes_on_through_a_new_tunnel(guests: Rig, agent: Running) -> None:
    """What serves on the other host is killed while the disk is sent: a new tunnel, and on where it was."""
    rig, guest = guests, "c1"
    if rig.exec(INITIATOR, "lxc-info", "-n", guest, check=False).status:  # the test above has left it there
        rig.guest(INITIATOR, guest, "tick")
    rig.sh(INITIATOR, f"head -c {24 * MIB} /dev/urandom >/pool/{guest}/rootfs/blob")
    command = ("migrator", "migrate", guest, "-d", f"peer:{RESPONDER}", "--json", "--reconnect", "3000")
    with held_stream(rig, INITIATOR, 16 * MIB) as stream, rig.start(INITIATOR, *command) as running:
        wait_for(lambda: arrived(rig) >= 12 * MIB or running.process.poll() is not None, "some of it has arrived")
        rig.kill_serve()
        wait_for(lambda: events_so_far(running, "reconnected") or running.process.poll() is not None, "it is back")
        stream.release()
        outcome = running.wait().expect(0)
    assert len(events(outcome, "waiting")) == len(events(outcome, "reconnected")) >= 1
    assert int(str(events(outcome, "round")[0]["resumed_bytes"])) >= 8 * MIB
    assert rig.probe(RESPONDER, guest)["intact"]


def events_so_far(running: Running, kind: str) -> list[str]:
    return [line for line in running.stderr.splitlines() if f'"type": "{kind}"' in line]


def test_a_peer_may_do_what_it_was_allowed(nats: Nats, guests: Rig, agent: Running) -> None:
    """The agent that waits already goes by what is said now; what a peer has begun stays its own."""
    rig, guest, there = guests, "c3", ("-d", f"peer:{RESPONDER}", "--json")
    rig.guest(INITIATOR, guest, "tick")
    before = rig.sh(RESPONDER, "find /pool -maxdepth 2 | sort")  # the tests above have moved some here
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "nothing").expect(0)
    for command in ("check", "prepare-data", "migrate"):
        refused = rig.migrator(INITIATOR, command, guest, *there).expect(41)
        assert refused.error["cure"].endswith(f"migrator peer allow {INITIATOR} receive")
    assert nats.tunnel("ping")["path"]  # paired it still is
    assert rig.sh(RESPONDER, "find /pool -maxdepth 2 | sort") == before
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "receive", "--lxcpath", "/pool/elsewhere").expect(0)
    rig.migrator(INITIATOR, "prepare-data", guest, *there, "--destination-lxcpath", "/pool").expect(41)
    rig.migrator(RESPONDER, "peer", "allow", INITIATOR, "receive").expect(0)
    rig.migrator(INITIATOR, "prepare-data", guest, *there).expect(0)
    (arriving,) = rig.migrator(RESPONDER, "status", "--json").expect(0).json["migrations"]
    assert arriving["peer"] == f"peer:{INITIATOR}"
    rig.migrator(INITIATOR, "rollback", guest).expect(0)
    assert rig.probe(INITIATOR, guest)["intact"]
