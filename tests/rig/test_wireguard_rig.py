# SPDX-License-Identifier: GPL-2.0-or-later
"""Real WireGuard interfaces between the rig's two hosts: what gets through, what does not, and what is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rig.harness import Rig, Running, wait_for

HOLDER = Path(__file__).with_name("tunnel_holder.py")
REPLAYER = Path(__file__).with_name("udp_replayer.py")
HERE = "/tmp/tunnel_holder.py"
PYTHON = "/opt/migrator/venv/bin/python"
ADDRESSES = {"hosta": "10.0.3.2", "hostb": "10.0.3.3"}
PORTS = {"hosta": 40001, "hostb": 40002}
ROLES = {"hosta": "initiator", "hostb": "responder"}

STALLS = 2  # a path is called dead, too, when the machine stands still for a second; what breaks it shows more often

# All that a tunnel puts into a host.
LEFT = r"""
nft list tables | grep mig- | sed 's/^/firewall: /'
ip -o link show | grep ' mig-' | sed 's/^[0-9]*: /interface: /; s/:* <.*//'
ip -6 route show table all | grep mig- | sed 's/^/route: /'
for file in /run/wireguard/* /run/migrator/tunnel /run/migrator/tunnel/* /run/migrator/tunnel/.[!.]*; do
    [ ! -e "$file" ] || echo "file: $file"
done
for folder in /proc/[0-9]*; do
    ! grep -qs '^State:.Z' "$folder/status" || continue # the host's init is about to take it away
    [ "$(cat "$folder/comm" 2>/dev/null)" != wireguard-go ] || echo "process: $(tr '\0' ' ' <"$folder/cmdline")"
done
exit 0
"""


@dataclasses.dataclass
class End:
    """One host's end of a tunnel."""

    rig: Rig
    host: str
    running: Running

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = (json.loads(line) for line in self.running.stdout.splitlines() if line.startswith("{"))
        return [event for event in found if event["event"] == kind]

    def wait(self, kind: str, count: int = 1) -> dict[str, Any]:
        wait_for(lambda: len(self.events(kind)) >= count or self.running.process.poll() is not None,
                 f"{kind} from {self.host}: {self.running.stdout} {self.running.stderr}", 60)  # fmt: skip
        assert len(self.events(kind)) >= count, f"{self.host}: {self.running.stdout} {self.running.stderr}"
        return self.events(kind)[count - 1]

    def ask(self, command: str, kind: str) -> dict[str, Any]:
        before = len(self.events(kind))
        self.rig.put(self.host, "/tmp/holder.new", command)
        self.rig.sh(self.host, "mv /tmp/holder.new /tmp/holder.commands")
        return self.wait(kind, before + 1)

    def close(self) -> None:
        """Ctrl-C."""
        self.running.signal(signal.SIGINT)
        outcome = self.running.wait()
        assert outcome.status == 0, str(outcome)

    def kill(self) -> None:
        """kill -9, of the very process and not of `rig exec`."""
        self.rig.sh(self.host, f"kill -9 $(pgrep -f '^{PYTHON} {HERE}')")
        self.running.wait()

    @property
    def up(self) -> dict[str, Any]:
        return self.wait("up")


@pytest.fixture
def hosts(rig: Rig) -> Iterator[Rig]:
    """Two hosts with nothing of a tunnel in them, before and after."""
    for host in ADDRESSES:
        rig.put(host, HERE, HOLDER.read_text())
        rig.sh(host, "rm -f /tmp/holder.commands")
    for host in (*ADDRESSES, "client"):
        rig.put(host, "/tmp/udp_replayer.py", REPLAYER.read_text())
    assert left(rig) == {"hosta": [], "hostb": []}
    yield rig
    found = left(rig)
    for host in ADDRESSES:
        rig.exec(host, PYTHON, HERE, "sweep", check=False)
    assert found == {"hosta": [], "hostb": []}


def left(rig: Rig) -> dict[str, list[str]]:
    return {host: rig.sh(host, LEFT).splitlines() for host in ADDRESSES}


@contextlib.contextmanager
def one_end(rig: Rig, host: str, session: str) -> Iterator[End]:
    peer = "hostb" if host == "hosta" else "hosta"
    arguments = [ROLES[host], session, ADDRESSES[peer], str(PORTS[peer]), str(PORTS[host])]
    with rig.start(host, PYTHON, HERE, *arguments) as running:
        yield End(rig, host, running)


@contextlib.contextmanager
def tunnel(rig: Rig, session: str | None = None) -> Iterator[tuple[End, End]]:
    """A tunnel between both hosts that carries echoes; both ends are closed by Ctrl-C unless they have ended."""
    session = session or secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(one_end(rig, "hostb", session))
        theirs.wait("up")
        ours = stack.enter_context(one_end(rig, "hosta", session))
        try:
            for end in (ours, theirs):
                end.wait("tuned")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{ours.running.stdout}\n{theirs.running.stdout}") from None
        yield ours, theirs
        for end in (ours, theirs):
            if end.running.process.poll() is None:
                end.close()


def tunes_to(end: End, mtu: int, found: int = 0) -> None:
    """It finds this MTU; a smaller one only while the machine is busy and echoes are late, a larger one never."""
    for _ in range(5):
        found = found or end.ask("tune", "tuned")["mtu"]
        assert found <= mtu
        if found == mtu:
            return
        found = 0
    raise AssertionError(f"{end.host} does not find an MTU of {mtu}: {end.running.stdout}")


def test_a_tunnel_carries_and_leaves_nothing(hosts: Rig) -> None:
    session = secrets.token_hex(16)
    with tunnel(hosts, session) as (ours, theirs):
        assert ours.up["name"] == f"mig-{session[:8]}" == theirs.up["name"]
        assert (ours.up["local"], ours.up["remote"]) == (theirs.up["remote"], theirs.up["local"])
        for end in (ours, theirs):
            tunes_to(end, 1420, end.wait("tuned")["mtu"])
        hosts.exec("hosta", "ping", "-c", "3", "-i", "0.1", "-W", "10", ours.up["remote"])
        found = ours.ask("measure", "measured")
        assert found["loss"] < 0.5 and found["rtt_ms"] < 500 and found["mbit_s"] > 5
        stats = ours.ask("stats", "stats")
        assert stats["endpoint"] == ["10.0.3.3", 40002] and stats["last_handshake"] > 0 and stats["tx_bytes"] > 0
        # A reader over the shoulder: arguments, environment, interface, records.
        seen = hosts.sh("hosta", "cat /run/migrator/tunnel/*; for pid in $(pgrep wireguard-go); do "
                                 "tr '\\0' '\\n' </proc/$pid/cmdline; tr '\\0' '\\n' </proc/$pid/environ; done; "
                                 "nft list ruleset; ip -d address; ls -ld /run/migrator/tunnel")  # fmt: skip
        assert f"wireguard-go\n-f\nmig-{session[:8]}" in seen and "drwx------" in seen
        for secret in (b"initiator" + bytes.fromhex(session), b"preshared" + bytes.fromhex(session)):
            assert hashlib.sha256(secret).hexdigest() not in seen
        # Nothing but the two addresses is on the way: no link-local ones, no other route.
        assert "fe80" not in hosts.sh("hosta", f"ip -6 address show dev mig-{session[:8]}")


def test_one_tcp_port_and_nothing_else(hosts: Rig) -> None:
    with tunnel(hosts) as (ours, theirs):
        here, there, port = ours.up["local"], ours.up["remote"], ours.up["port"]
        with listening(hosts, "hostb", port, 45001), listening(hosts, "hosta", 45001):
            assert connects(hosts, "hosta", there, port, limit=30)
            assert not connects(hosts, "hosta", there, 45001)
            assert not connects(hosts, "hosta", there, 22)  # sshd
            # There is no way back.
            assert not connects(hosts, "hostb", here, 45001)
            # Users of this host reach it, which is why it asks for the session's secret.
            assert connects(hosts, "hostb", there, port, limit=30)
            # Who is on the same network as a host does not reach its tunnel address.
            hosts.sh("client", f"ip -6 route replace {there} via fd00:3::3 dev eth0")
            assert not connects(hosts, "client", there, port)
            hosts.sh("client", f"ip -6 route del {there}")
        # Not even from the listener's port, once that is free, may a connection be made.
        with listening(hosts, "hosta", 45001):
            assert not connects(hosts, "hostb", here, 45001, source=port)
        name = theirs.up["name"]
        # UDP other than from echo port to echo port, seen behind the firewall of the tunnel.
        with counted(hosts, "hostb", name, "input", f"udp sport != {ours.up['echo']}") as count:
            udp(hosts, "hosta", there, 45001)
            udp(hosts, "hosta", there, ours.up["echo"])
            assert count() == 0


def test_nothing_is_forwarded_even_for_a_peer_that_tries(hosts: Rig) -> None:
    with tunnel(hosts) as (ours, _theirs):
        name = ours.up["name"]
        hosts.sh("hosta", f"wg set {name} peer $(wg show {name} peers) allowed-ips ::/0")
        hosts.sh("hosta", f"ip -6 route add fd00:9::/64 dev {name}; ip -6 route add fd00:3::3/128 dev {name}")
        hosts.sh("hostb", "ip -6 route add fd00:9::/64 dev lxcbr0")
        before = hosts.sh("hostb", "sysctl -n net.ipv6.conf.all.forwarding").strip()
        hosts.sh("hostb", "sysctl -qw net.ipv6.conf.all.forwarding=1")
        try:
            with counted(hosts, "hostb", name, "forward", "udp dport 45001") as count:
                udp(hosts, "hosta", "fd00:9::1", 45001)
                assert count() == 0
                hosts.sh("hostb", f"nft delete table inet {name}")
                udp(hosts, "hosta", "fd00:9::1", 45001)
                wait_for(lambda: count() > 0, "some come through")  # so it was the table that stopped them
        finally:
            hosts.sh("hostb", f"sysctl -qw net.ipv6.conf.all.forwarding={before}")
            hosts.sh("hostb", "ip -6 route del fd00:9::/64 dev lxcbr0")


def test_a_host_is_reached_at_its_tunnel_address_only(hosts: Rig) -> None:
    with tunnel(hosts) as (ours, _theirs):
        name = ours.up["name"]
        hosts.sh("hosta", f"wg set {name} peer $(wg show {name} peers) allowed-ips ::/0")
        hosts.sh("hosta", f"ip -6 route add fd00:3::3/128 dev {name}")
        with listening(hosts, "hostb", ours.up["port"]):
            assert not connects(hosts, "hosta", "fd00:3::3", ours.up["port"], local=ours.up["local"])
            hosts.sh("hosta", f"ip -6 route del fd00:3::3/128 dev {name}")
            assert connects(hosts, "hosta", "fd00:3::3", ours.up["port"], limit=30)


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
        outcome = hosts.exec("hosta", PYTHON, HERE, "sweep")
        assert outcome.json["names"] == [name]
        assert hosts.sh("hosta", LEFT) == ""
        assert hosts.sh("hostb", LEFT) != ""  # the other side is in use
        assert hosts.exec("hosta", PYTHON, HERE, "sweep").json["names"] == []


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


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 15, 20, 30, 40, 60])
def test_interrupted_at_any_moment(hosts: Rig, milliseconds: int) -> None:
    with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
        end.wait("begins")
        time.sleep(milliseconds / 1000)
        end.close()
    assert hosts.sh("hosta", LEFT) == ""


@pytest.mark.parametrize("milliseconds", [0, 10, 20, 30, 40, 60, 90])
def test_killed_at_any_moment(hosts: Rig, milliseconds: int) -> None:
    with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
        end.wait("begins")
        pid = hosts.sh("hosta", f"pgrep -f '^{PYTHON} {HERE}'").strip()
        time.sleep(milliseconds / 1000)
        hosts.sh("hosta", f"kill -9 {pid}")
        end.running.wait()
    hosts.exec("hosta", PYTHON, HERE, "sweep")
    assert hosts.sh("hosta", LEFT) == ""


def test_a_port_that_is_taken_is_told_and_nothing_stays(hosts: Rig) -> None:
    code = f"import socket, time\ns = socket.socket(2, 2)\ns.bind(('', {PORTS['hosta']}))\nprint(1, flush=True)\n"
    with hosts.start("hosta", PYTHON, "-c", f"{code}time.sleep(60)") as taken:
        wait_for(lambda: taken.stdout, "the port is taken")
        with one_end(hosts, "hosta", secrets.token_hex(16)) as end:
            outcome = end.running.wait()
            assert outcome.status == 83
            assert "Address already in use" in end.wait("failed")["error"]["message"]
    assert hosts.sh("hosta", LEFT) == ""


def test_the_endpoint_moves_to_a_relay_and_back_under_a_live_tunnel(hosts: Rig) -> None:
    client = hosts.sh("client", "ip -4 -o address show dev eth0 | sed 's/.* inet //; s,/.*,,'").strip()
    with tunnel(hosts) as (ours, theirs):
        ping = ["ping", "-c", "5", "-i", "0.1", "-W", "10", ours.up["remote"]]
        with hosts.start("client", "python3", "-c", FORWARD, "40003", ADDRESSES["hostb"], "40002") as relay:
            wait_for(lambda: relay.stdout, "the relay is there")
            with dropped(hosts, "hostb", "ip saddr 10.0.3.2 udp dport 40002"), \
                    dropped(hosts, "hosta", "ip saddr 10.0.3.3 udp dport 40001"):
                wait_for(lambda: ours.events("dead"), "the path is dead")
                ours.ask(f"endpoint {client} 40003", "moved")
                hosts.exec("hosta", *ping)
                assert ours.ask("stats", "stats")["endpoint"] == [client, 40003]
                assert theirs.ask("stats", "stats")["endpoint"][0] == client  # it followed
            # Back, while packets are still under way through the relay.
            deaths = len(ours.events("dead"))
            ours.ask("endpoint 10.0.3.3 40002", "moved")
            hosts.exec("hosta", *ping)
            wait_for(lambda: ours.ask("stats", "stats")["endpoint"] == ["10.0.3.3", 40002]
                     and theirs.ask("stats", "stats")["endpoint"] == ["10.0.3.2", 40001], "both are direct")
            hosts.exec("hosta", *ping)
            assert len(ours.events("dead")) <= deaths + STALLS


def test_the_mtu_is_what_the_path_carries(hosts: Rig) -> None:
    with tunnel(hosts) as (ours, theirs):
        with dropped(hosts, "hostb", "udp dport 40002 meta length > 1400"):  # as a router that says nothing
            tunes_to(ours, 1328)
            assert " mtu 1328 " in hosts.sh("hosta", f"ip link show dev {ours.up['name']}")
            tunes_to(theirs, 1420)  # the other direction is as it was
        tunes_to(ours, 1420)
        hosts.sh("hosta", "ip route replace 10.0.3.3/32 dev lxcbr0 mtu 1350")  # as a router that has said it
        try:
            tunes_to(ours, 1290)
            found = ours.ask("measure", "measured")
            assert found["loss"] < 0.5 and found["mbit_s"] > 5
        finally:
            hosts.sh("hosta", "ip route del 10.0.3.3/32 dev lxcbr0")
        tunes_to(ours, 1420)


def test_replayed_packets_change_nothing(hosts: Rig) -> None:
    to_capture = ["python3", "/tmp/udp_replayer.py", "capture", "lxcbr0", "40002", "/tmp/captured"]
    with hosts.start("hostb", *to_capture) as capture:
        wait_for(lambda: capture.stdout, "it captures")
        with tunnel(hosts) as (ours, theirs):
            ping = ["ping", "-c", "5", "-i", "0.1", "-W", "10", theirs.up["local"]]
            hosts.exec("hosta", *ping)
            capture.signal(signal.SIGTERM)
            assert capture.wait().status == 0
            taken = hosts.read("hostb", "/tmp/captured")
            kinds = {packet[:2] for packet in json.loads(taken)}
            assert "04" in kinds and kinds & {"01", "02"}  # data, and a handshake's initiation or response
            before = theirs.ask("stats", "stats")
            name = theirs.up["name"]
            with counted(hosts, "hostb", name, "input", "icmpv6 type echo-request") as count:
                for host in ("hosta", "client"):
                    hosts.put(host, "/tmp/captured", taken)
                replay = ["python3", "/tmp/udp_replayer.py", "send", "/tmp/captured", ADDRESSES["hostb"], "40002"]
                for _ in range(3):
                    hosts.exec("hosta", *replay, "40001")  # from the very same address and port
                    assert hosts.exec("client", *replay).stdout.strip() == "0"  # and from another, which learns nothing
                assert count() == 0
                after = theirs.ask("stats", "stats")
                assert after["endpoint"] == before["endpoint"]
                # No handshake, unless by chance a real one was due: then the other end took part in it.
                if after["last_handshake"] != before["last_handshake"]:
                    assert abs(after["last_handshake"] - ours.ask("stats", "stats")["last_handshake"]) < 1
                hosts.exec("hosta", *ping)
                assert count() == 5
            assert max(len(end.events("dead")) for end in (ours, theirs)) <= STALLS


# --- In the hosts ---

LISTEN = """
import socket, sys, select
listeners = [socket.create_server(("::", int(port)), family=socket.AF_INET6) for port in sys.argv[1:]]
print("listens", flush=True)
while True:
    for ready in select.select(listeners, [], [])[0]:
        ready.accept()[0].close()
"""

CONNECT = """
import socket, sys
address, port, source, local, limit = sys.argv[1:]
try:
    socket.create_connection((address, int(port)), int(limit), (local, int(source))).close()
except OSError as error:
    sys.exit(f"no: {error}")
"""

FORWARD = """
import socket, sys, select
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mine.bind(("", int(sys.argv[1])))
theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
theirs.connect((sys.argv[2], int(sys.argv[3])))
print("forwards", flush=True)
last = None
while True:
    for ready in select.select([mine, theirs], [], [])[0]:
        data, sender = ready.recvfrom(65536)
        if ready is mine:
            last = sender
            theirs.send(data)
        elif last:
            mine.sendto(data, last)
"""

SEND = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
    for _ in range(3):
        sender.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
"""


@contextlib.contextmanager
def listening(rig: Rig, host: str, *ports: int) -> Iterator[None]:
    """Something that listens on these TCP ports of all of the host's addresses."""
    with rig.start(host, "python3", "-c", LISTEN, *map(str, ports)) as running:
        wait_for(lambda: running.stdout or running.process.poll() is not None, "it listens")
        assert running.stdout, running.stderr
        yield


def connects(rig: Rig, host: str, address: str, port: int, *, source: int = 0, local: str = "::",
             limit: int = 1) -> bool:
    """Whether a TCP connection to there comes about within `limit` seconds."""
    arguments = [address, str(port), str(source), local, str(limit)]
    return rig.exec(host, "python3", "-c", CONNECT, *arguments, check=False).status == 0


def udp(rig: Rig, host: str, address: str, port: int) -> None:
    """Three datagrams from any port."""
    rig.exec(host, "python3", "-c", SEND, address, str(port))


@contextlib.contextmanager
def dropped(rig: Rig, host: str, rule: str) -> Iterator[None]:
    """What matches a rule does not reach a host."""
    rig.exec(host, "nft", "-f", "-", input=f"""
        table ip test_drop {{
            chain c {{
                type filter hook input priority filter
                {rule} drop
            }}
        }}""")
    try:
        yield
    finally:
        rig.sh(host, "nft delete table ip test_drop")


@contextlib.contextmanager
def counted(rig: Rig, host: str, name: str, hook: str, rule: str) -> Iterator[Callable[[], int]]:
    """Counts packets from an interface that come through its firewall and match a rule."""
    rig.exec(host, "nft", "-f", "-", input=f"""
        table inet test_count {{
            chain c {{
                type filter hook {hook} priority filter + 10
                iifname "{name}" {rule} counter
            }}
        }}""")

    def count() -> int:
        listed = json.loads(rig.sh(host, "nft -j list chain inet test_count c"))["nftables"]
        (found,) = [e["counter"]["packets"] for entry in listed if "rule" in entry for e in entry["rule"]["expr"]
                    if "counter" in e]  # fmt: skip
        return int(found)

    try:
        yield count
    finally:
        rig.sh(host, "nft delete table inet test_count")
