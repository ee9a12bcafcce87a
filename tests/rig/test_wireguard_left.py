# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real WireGuard interface leaves in the rig's hosts, however it ends; and what its keys show of themselves."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.rig import Rig, wait_for
from tests.effort import tries
from tests.rig.tunnel_ends import (
    ADDRESSES,
    HERE,
    HOLDER,
    LEFT,
    PORTS,
    PYTHON,
    counted,
    left,
    one_end,
    sweep,
    tunnel,
)

REPLAYER = Path(__file__).with_name("udp_replayer.py")


@pytest.fixture(scope="module")
def prepared(rig: Rig) -> Rig:
    """Two hosts that have what these tests run in them."""
    for host in ADDRESSES:
        rig.put(host, HERE, HOLDER.read_text())
        rig.sh(host, "rm -f /tmp/holder.commands")
    for host in (*ADDRESSES, "client"):
        rig.put(host, "/tmp/udp_replayer.py", REPLAYER.read_text())
    assert left(rig) == []
    return rig


@pytest.fixture
def hosts(prepared: Rig) -> Iterator[Rig]:
    """Two hosts with nothing of a tunnel in them, before and after."""
    yield prepared
    found = left(prepared)
    if found:  # the next test shall not suffer for it
        for host in ADDRESSES:
            sweep(prepared, host)
    assert found == []


def test_no_secret_is_shown(hosts: Rig) -> None:
    session = secrets.token_hex(16)
    with tunnel(hosts, session) as (ours, _theirs):
        assert ours.up["name"] == f"mig-{session[:8]}"
        # A reader over the shoulder: arguments, environment, interface, records.
        seen = hosts.sh("hosta", "cat /run/migrator/tunnel/*; for pid in $(pgrep wireguard-go); do "
                                 "tr '\\0' '\\n' </proc/$pid/cmdline; tr '\\0' '\\n' </proc/$pid/environ; done; "
                                 "nft list ruleset; ip -d address; ls -ld /run/migrator/tunnel")  # fmt: skip
        assert f"wireguard-go\n-f\nmig-{session[:8]}" in seen and "drwx------" in seen
        for secret in (b"initiator" + bytes.fromhex(session), b"preshared" + bytes.fromhex(session)):
            assert hashlib.sha256(secret).hexdigest() not in seen


@pytest.mark.parametrize("also_the_server", [False, True])
def test_what_kill_9_leaves_is_swept(hosts: Rig, also_the_server: bool) -> None:
    session = secrets.token_hex(16)
    name = f"mig-{session[:8]}"
    with tunnel(hosts, session) as (ours, _theirs):
        ours.kill()
        if also_the_server:
            hosts.sh("hosta", f"""
                pid=$(pgrep -f '^wireguard-go -f {name}')
                kill -9 $pid; while [ -e /proc/$pid ]; do sleep 0.02; done""")
        found = hosts.sh("hosta", LEFT)
        assert f"firewall: table inet {name}" in found and f"file: /run/wireguard/{name}.sock" in found
        assert (f"interface: {name}" in found) == (not also_the_server)
        assert sweep(hosts, "hosta") == [name]
        assert hosts.sh("hosta", LEFT) == ""
        assert hosts.sh("hostb", LEFT) != ""  # the other side is in use
        assert sweep(hosts, "hosta") == []


def test_a_session_begins_again_over_its_own_remains(hosts: Rig) -> None:
    session = secrets.token_hex(16)
    with tunnel(hosts, session) as (ours, theirs):
        hosts.sh("hosta", "kill -9 $(pgrep wireguard-go)")  # its socket file stays
        wait_for(lambda: ours.events("dead") and theirs.events("dead"), "both have noticed")
        ours.kill()
        assert ".sock" in hosts.sh("hosta", LEFT)
        with one_end(hosts, "hosta", session) as again:
            again.wait("answer")
            again.close()


@pytest.mark.parametrize("attempt", range(tries(3, 12)))
def test_interrupted_at_any_moment(hosts: Rig, attempt: int) -> None:
    with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
        end.wait("begins")
        time.sleep(random.uniform(0, 0.02) * attempt)
        end.close()


@pytest.mark.parametrize("attempt", range(tries(3, 12)))
def test_killed_at_any_moment(hosts: Rig, attempt: int) -> None:
    with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
        end.wait("begins")
        pid = hosts.sh("hosta", f"pgrep -f '^{PYTHON} {HERE}'").strip()
        time.sleep(random.uniform(0, 0.03) * attempt)
        hosts.sh("hosta", f"kill -9 {pid}")
        end.running.wait()
    sweep(hosts, "hosta")


def test_a_port_that_is_taken_is_told_and_nothing_stays(hosts: Rig) -> None:
    code = f"import signal, socket\ns = socket.socket(2, 2)\ns.bind(('', {PORTS['hosta']}))\nprint(1, flush=True)\n"
    with hosts.start("hosta", PYTHON, "-c", f"{code}signal.pause()") as taken:
        wait_for(lambda: taken.stdout, "the port is taken")
        with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
            outcome = end.running.wait()
            assert outcome.status == 83
            assert "Address already in use" in end.wait("failed")["error"]["message"]


def test_replayed_packets_change_nothing(hosts: Rig) -> None:
    to_capture = ["python3", "/tmp/udp_replayer.py", "capture", "lxcbr0", "40002", "/tmp/captured"]
    with hosts.start("hostb", *to_capture) as capture:
        wait_for(lambda: capture.stdout, "it captures")
        with tunnel(hosts) as (ours, theirs):
            ping = ["ping", "-c", "5", "-i", "0.1", "-W", "60", theirs.up["local"]]
            hosts.exec("hosta", *ping)
            capture.signal(signal.SIGTERM)
            assert capture.wait().status == 0
            taken = hosts.read("hostb", "/tmp/captured")
            kinds = {packet[:2] for packet in json.loads(taken)}
            assert "04" in kinds and kinds & {"01", "02"}  # data, and a handshake's initiation or response
            before = [end.ask("stats", "stats") for end in (ours, theirs)]
            name = theirs.up["name"]
            with counted(hosts, "hostb", name, "input", "icmpv6 type echo-request") as count:
                for host in ("hosta", "client"):
                    hosts.put(host, "/tmp/captured", taken)
                replay = ["python3", "/tmp/udp_replayer.py", "send", "/tmp/captured", ADDRESSES["hostb"], "40002"]
                for _ in range(3):
                    hosts.exec("hosta", *replay, "40001")  # from the very same address and port
                    assert hosts.exec("client", *replay).stdout.strip() == "0"  # and from another, which learns nothing
                assert count() == 0
                # The other end last: of a handshake in between it knows.
                after = [end.ask("stats", "stats") for end in (theirs, ours)][::-1]
                assert after[1]["endpoint"] == before[1]["endpoint"]
                # No handshake, unless by chance a real one was due: then the other end took part in it.
                same = [one["last_handshake"] == two["last_handshake"] for one, two in zip(before, after, strict=True)]
                assert same[1] or not same[0]
                hosts.exec("hosta", *ping)
                assert count() == 5
