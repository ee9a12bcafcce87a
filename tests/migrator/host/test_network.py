# SPDX-License-Identifier: GPL-2.0-or-later
"""Announcements as data: built, and parsed back by the rules of the protocols."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.base import names
from migrator.base.run import run
from migrator.errors.containers import InvalidName
from migrator.host import network
from migrator.host.network import Address, Port

MAC = bytes.fromhex("00163e112233")
macs = st.binary(min_size=6, max_size=6)


@given(macs, st.ip_addresses(v=4))
def test_gratuitous_arp(mac: bytes, address: ipaddress.IPv4Address) -> None:
    frame = network.gratuitous_arp(mac, address)
    to, sender, kind = struct.unpack("!6s6sH", frame[:14])
    assert (to, sender, kind) == (b"\xff" * 6, mac, 0x0806)
    hardware, protocol, hlen, plen, operation, sha, spa, tha, tpa = struct.unpack("!HHBBH6s4s6s4s", frame[14:])
    assert (hardware, protocol, hlen, plen) == (1, 0x0800, 6, 4)
    assert operation == 1  # a request, which more switches and hosts believe than an answer
    assert (sha, spa, tpa) == (mac, address.packed, address.packed)
    assert tha == bytes(6)


@given(macs, st.ip_addresses(v=6))
def test_unsolicited_advertisement(mac: bytes, address: ipaddress.IPv6Address) -> None:
    frame = network.unsolicited_advertisement(mac, address)
    assert struct.unpack("!6s6sH", frame[:14]) == (bytes.fromhex("333300000001"), mac, 0x86DD)
    first, length, next_header, hops, source, target = struct.unpack("!IHBB16s16s", frame[14:54])
    assert (first >> 28, length, next_header, hops) == (6, 32, 58, 255)
    assert (source, target) == (address.packed, ipaddress.IPv6Address("ff02::1").packed)
    body = frame[54:]
    kind, code, _checksum, flags, told, option, units, link = struct.unpack("!BBHI16sBB6s", body)
    assert (kind, code, told, option, units, link) == (136, 0, address.packed, 2, 1, mac)
    assert flags == 0x20000000  # override, not solicited
    # RFC 4443, section 2.3: summed with the pseudo-header and the checksum itself, all ones come out.
    pseudo = source + target + struct.pack("!II", len(body), 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def test_frames_follow_the_address_family() -> None:
    found = network.frames([
        Address("eth0", "00:16:3e:11:22:33", ipaddress.ip_address("10.0.3.100")),
        Address("eth1", "00:16:3e:11:22:34", ipaddress.ip_address("fd00:3::100")),
    ])
    assert [interface for interface, _ in found] == ["eth0", "eth1"]
    assert found[0][1] == network.gratuitous_arp(MAC, ipaddress.IPv4Address("10.0.3.100"))
    assert found[1][1][12:14] == b"\x86\xdd"


def test_commands() -> None:
    found = [Port("eth0", "vethAB", "lxcbr0"), Port("eth1", "_x", "")]
    program, script = network.silence_command("0badc0de", found)
    assert program == "nft"
    assert script.startswith("add table netdev migrator-0badc0de; delete table netdev migrator-0badc0de; table ")
    for hook in ("ingress", "egress"):
        assert f'hook {hook} devices = {{ "vethAB", "_x" }} priority -500; policy drop;' in script
    assert network.hear_command("0badc0de") == ["nft", script.partition("; table ")[0]]
    assert Port(**found[0].to_json()) == found[0]


@pytest.mark.parametrize(("where", "left"), [
    ('device "veth1"', ["veth1"]), ("devices = { veth1, gone, lo }", ["lo", "veth1"]),
    ('devices = { "veth1", "-x" }', ["-x", "veth1"]), ('device "gone"', []), ("devices = { gone }", []),
])
def test_what_a_table_keeps_silent(where: str, left: list[str], tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """As nft(8) shows it: 1.0.6 and 1.1 with and without quotes."""
    for name in ("veth1", "lo", "-x"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(network, "CLASS_NET", tmp_path)
    said = f"table netdev t {{\n\tchain egress {{\n\t\ttype filter hook egress {where} priority -500; policy drop;\n"
    monkeypatch.setattr(network, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said))
    monkeypatch.setattr(subprocess.CompletedProcess, "text", property(lambda done: done.stdout), raising=False)
    assert network.still_silenced("0badc0de") == left


@pytest.mark.parametrize("name", ['a"b', "eth*", "a\\b", "x; drop"])
def test_a_name_that_could_mean_something_else_to_nft(name: str) -> None:
    with pytest.raises(InvalidName):
        network.silence_command("0badc0de", [Port("eth0", name, "lxcbr0")])


def link(index: int, name: str, peer: int, **more: object) -> dict[str, object]:
    """As `ip -j link` shows a veth."""
    return {"ifindex": index, "ifname": name, "link_index": peer, **more}


OWN = link(57, "vethWEB", 2, master="br0", link_netnsid=3)
VICTIM = link(41, "vethVICTIM", 2, master="br0", link_netnsid=1)
INSIDE = [link(2, "eth0", 57, link_netnsid=0), link(9, "v0", 41, link_netnsid=1), link(3, "a", 4), link(4, "b", 3)]


def test_a_peer_further_in_is_nobodys_on_the_host() -> None:
    """The container's root has chosen its index."""
    assert network.between(INSIDE, [OWN, VICTIM], 3) == [Port("eth0", "vethWEB", "br0")]
    assert network.between(INSIDE, [OWN, VICTIM], 1) == [Port("eth0", "vethVICTIM", "br0")], "the other's own"


def test_what_has_no_end_in_the_container() -> None:
    on_the_host = [link(3, "x", 4, master="br0"), link(4, "y", 3)]  # no link_netnsid: both ends here
    assert network.between(INSIDE, on_the_host, -1) == []
    assert network.between(INSIDE, on_the_host, 0) == []
    gone = link(57, "vethWEB", 8, link_netnsid=3)  # made after the container was looked at
    assert network.between(INSIDE, [gone, link(58, "odd", 2, link_netnsid=-1)], 3) == []
    assert network.between(INSIDE, [link(58, "odd", 2, link_netnsid=-1)], -1) == []
    assert network.between(INSIDE, [link(58, "vethX", 2, link_netnsid=0)], 0) == [Port("eth0", "vethX", "")]


# --- with real namespaces -------------------------------------------------------------------------------------


@pytest.fixture
def container() -> Iterator[int]:
    """The id of a process in a network namespace of its own, whose eth0 is plugged into a bridge beside us.

    All of it is in namespaces of this test's, so nothing of the machine's network is touched.
    """
    script = """
        ip link set lo up
        ip link add br-test type bridge forward_delay 0 stp_state 0 mcast_snooping 0
        ip link set br-test up
        unshare --net sleep infinity &
        inside=$!
        while [ "$(readlink /proc/$inside/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
        ip link add veth-out type veth peer name eth0 address 00:16:3e:11:22:33 netns $inside
        ip link set veth-out master br-test up
        nsenter --net=/proc/$inside/ns/net sh -c 'ip link set eth0 up; ip address add 10.9.0.1/24 dev eth0;
            ip address add fd00:9::1/64 dev eth0 nodad; ip link set lo up'
        echo $inside
        wait $inside
    """
    with subprocess.Popen(["unshare", "--net", "--kill-child", "--fork", "sh", "-ec", script], text=True,
                          stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        try:
            yield pid
        finally:
            os.killpg(process.pid, 9)


@pytest.fixture
def host(container: int) -> Iterator[None]:
    """This thread in the namespace that the bridge is in."""
    outer = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    parent = Path(f"/proc/{container}/stat").read_text().rpartition(")")[2].split()[1]
    inner = os.open(f"/proc/{parent}/ns/net", os.O_RDONLY)
    network._setns(inner)
    try:
        yield
    finally:
        network._setns(outer)
        os.close(outer)
        os.close(inner)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
def test_ports_and_addresses(container: int, host: None) -> None:
    assert network.ports(container) == [Port("eth0", "veth-out", "br-test")]
    told = {(entry.interface, entry.mac, str(entry.address)) for entry in network.addresses(container)}
    assert {("eth0", "00:16:3e:11:22:33", "10.9.0.1"), ("eth0", "00:16:3e:11:22:33", "fd00:9::1")} <= told
    assert not any(interface == "lo" for interface, _, _ in told)


def namespace(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


@needs_root
def test_a_namespace_in_the_container(container: int, host: None) -> None:
    """A veth between the two, whose further end has the index of another container's veth on the host."""
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as other:
        try:
            while namespace(other.pid) == namespace("thread-self"):
                time.sleep(0.01)
            run(["ip", "link", "add", "veth-victim", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid)])
            index = json.loads(run(["ip", "-j", "link", "show", "dev", "veth-victim"]).text)[0]["ifindex"]
            inner = subprocess.Popen(["nsenter", f"--net=/proc/{container}/ns/net", "unshare", "--net", "sleep", "inf"])
            try:
                while namespace(inner.pid) in (namespace("thread-self"), namespace(container)):
                    time.sleep(0.01)
                run(["nsenter", f"--net=/proc/{container}/ns/net", "ip", "link", "add", "v0", "type", "veth", "peer",
                     "name", "v1", "index", str(index), "netns", str(inner.pid)])
                assert network.ports(container) == [Port("eth0", "veth-out", "br-test")]
                assert network.ports(other.pid) == [Port("eth0", "veth-victim", "")]
                assert network.ports(os.getpid()) == network.ports(inner.pid) == []
            finally:
                inner.kill()
                inner.wait()
        finally:
            other.kill()


@needs_root
def test_the_namespace_of_a_process_that_has_ended() -> None:
    with pytest.raises(OSError, match="of process 4194303"):
        network._namespace_id(2**22 - 1)


@needs_root
def test_silenced_and_heard_again(container: int, host: None) -> None:
    """Nothing comes through in either direction; the port keeps its place and its flags."""
    run(["bridge", "link", "set", "dev", "veth-out", "isolated", "on"])
    run(["ip", "address", "add", "10.9.0.2/24", "dev", "br-test"])

    def shown() -> str:
        return run(["bridge", "-d", "link"]).text

    inside = ["nsenter", f"--net=/proc/{container}/ns/net"]

    def answers(address: str = "10.9.0.1", *entered: str, patience: int = 60) -> bool:
        """Nobody listens there, and a kernel that hears us says so at once."""
        knock = f"import socket; socket.create_connection(({address!r}, 9), {patience})"
        return "ConnectionRefusedError" in run([*entered, sys.executable, "-c", knock], check=False).stderr.decode()

    def packets() -> list[int]:
        text = run([*inside, "ip", "-j", "-s", "link", "show", "eth0"]).text
        return [json.loads(text)[0]["stats64"]["rx"]["packets"]]

    assert answers() and answers("10.9.0.2", *inside)
    found, before = network.ports(container), shown()
    network.silence("0badc0de", found)
    assert network.silenced() == ["0badc0de"] and network.is_silent("0badc0de")
    heard = packets()
    assert not answers(patience=1)
    assert packets() == heard, "nothing has come in"
    assert not answers("10.9.0.2", *inside, patience=1)
    network.silence("0badc0de", found)  # safe to repeat
    assert (shown(), network.ports(container)) == (before, found)
    network.hear("0badc0de")
    network.hear("0badc0de")
    assert network.silenced() == [] and not network.is_silent("0badc0de")
    assert answers()
    network.plug(container, found)
    assert shown() == before
    run(["ip", "link", "set", "dev", "veth-out", "nomaster"])  # what an older version did
    network.plug(container, [*found, Port("eth1", "lo", "br-test")])
    assert network.ports(container) == found and answers()
    assert run(["nft", "list", "ruleset"]).text == ""
    network.remove(found)
    assert network.ports(container) == []
    network.remove(found)


@needs_root
def test_any_interface_of_a_container_is_hushed_and_given_back(container: int, host: None) -> None:
    """Its root may call it what the kernel allows."""
    for number, name in enumerate(('a"b', "-x", "$(x)", "*", "\x01", "é", "a\u2003b")):
        run(["nsenter", f"--net=/proc/{container}/ns/net", "ip", "link", "add", "name", name, "type", "bridge",
             "forward_delay", str(number * 100)])
    before = network.dad_settings(container)
    assert {'a"b', "-x", "$(x)", "*", "\x01", "é", "a\u2003b"} <= before.keys()
    assert [names.inside_interface(name) for name in json.loads(json.dumps(before))] == list(before)
    network.hush_dad(container, before)
    assert network.dad_settings(container) == {}
    network.bring_back_dad(container, before)
    assert network.dad_settings(container) == before


@needs_root
def test_announcements_arrive(container: int, host: None) -> None:
    """Both kinds, as often as asked for, on the bridge that the container is plugged into."""
    arp = network.gratuitous_arp(MAC, ipaddress.IPv4Address("10.9.0.1"))
    neighbour = network.unsolicited_advertisement(MAC, ipaddress.IPv6Address("fd00:9::1"))
    seen: list[bytes] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as listener:
        listener.bind(("veth-out", 3))
        network.announce(container, (0.0, 0.01)).join()
        while min(seen.count(arp), seen.count(neighbour)) < 2:
            seen.append(listener.recv(2000))
        with contextlib.suppress(BlockingIOError):
            while True:
                seen.append(listener.recv(2000, socket.MSG_DONTWAIT))
    assert (seen.count(arp), seen.count(neighbour)) == (2, 2)


@needs_root
def test_a_container_that_is_gone_only_makes_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    network.announce(2**22 - 1, (0.0,)).join()
    assert "could not be announced" in capsys.readouterr().err
