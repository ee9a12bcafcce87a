# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's addresses, firewall and MTU as data; making the interface and removing it, with steps that fail."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ipaddress
import os
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.base.process_id import Process, ProgramFailed
from tests.tunnel.clock import eventually, simulated
from tests.tunnel.interfaces import ALL, DEAD, SESSION, FakeBackend, Keys, Links, Path_, links, removed  # noqa: F401 -- fixtures
from tunnel.interface import addresses, device, firewall, leftovers, mtu
from tunnel.interface.leftovers import Record
from tunnel.tunnel_errors import InterfaceFailed, LeftoversRemain, WireGuardFailed
from tunnel.wireguard import kernel, userspace

sessions = st.binary(min_size=16, max_size=16)


# --- Addresses ---


@given(sessions)
def test_both_sides_derive_the_same(session: bytes) -> None:
    one, two = addresses.inside(session, "initiator"), addresses.inside(session, "responder")
    assert (one.name, one.tcp_port, one.echo_port) == (two.name, two.tcp_port, two.echo_port)
    assert (one.local, one.remote) == (two.remote, two.local)
    assert two.listens and not one.listens
    assert len(one.name) <= 15  # IFNAMSIZ - 1
    assert one.tcp_port != one.echo_port
    assert 20000 <= min(one.tcp_port, one.echo_port) <= max(one.tcp_port, one.echo_port) < 30000
    for address in (one.local, one.remote):
        assert ipaddress.IPv6Address(address) in ipaddress.ip_network("fd00::/8")
    assert ipaddress.IPv6Address(one.remote) in ipaddress.ip_network(f"{one.local}/64", strict=False)


@given(sessions, sessions)
def test_sessions_do_not_share_addresses(first: bytes, second: bytes) -> None:
    both = [addresses.inside(session, "initiator") for session in (first, second)]
    assert len({address for each in both for address in (each.local, each.remote)}) == (2 if first == second else 4)


def test_names() -> None:
    assert addresses.interface_name(SESSION) == "mig-00010203"
    with pytest.raises(ValueError, match="16 bytes"):
        addresses.inside(b"short", "initiator")


# --- Firewall ---

RULES = """\
table inet mig-00010203 {
    chain input {
        type filter hook input priority filter - 10; policy accept;
        iifname "mig-00010203" goto from_tunnel
        ip6 daddr fd00::1 iifname != "lo" drop
        %s
    }
    chain from_tunnel {
        ip6 saddr != fd00::2 drop
        ip6 daddr != fd00::1 drop
        %s accept
        udp sport 20001 udp dport 20001 accept
        icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply } accept
        drop
    }
    chain forward {
        type filter hook forward priority filter - 10; policy accept;
        iifname "mig-00010203" drop
        oifname "mig-00010203" drop
    }
}
"""  # noqa: E501


@pytest.mark.parametrize(("listens", "own", "tcp"), [
    (True, "ip6 daddr fd00::1 tcp dport 20000 drop", "tcp dport 20000"),
    (False, "", "tcp sport 20000 tcp flags & (syn | ack) != syn"),
])  # fmt: skip
def test_the_ruleset(listens: bool, own: str, tcp: str) -> None:
    found = firewall.ruleset(
        "mig-00010203", local="fd00::1", remote="fd00::2", tcp_port=20000, echo_port=20001, listens=listens
    )
    assert found == (RULES % (own, tcp)).replace("        \n", "")


def test_what_could_change_other_tables_never_becomes_a_ruleset() -> None:
    settings: dict[str, Any] = {"remote": "fd00::2", "tcp_port": 1, "echo_port": 2, "listens": True}
    for name in ("filter", "mig-00010203 { } ; flush ruleset", "mig-0001020"):
        with pytest.raises(ValueError, match="not the interface of a session"):
            firewall.ruleset(name, local="fd00::1", **settings)
        with pytest.raises(ValueError, match="not the interface of a session"):
            firewall.removal(name)
    with pytest.raises(ValueError, match=r".+"):
        firewall.ruleset("mig-00010203", local="fd00::1 drop", **settings)


def test_removal_is_no_error_where_there_is_nothing() -> None:
    # A table that is declared first can be deleted whether it was there or not.
    assert firewall.removal("mig-00010203") == "table inet mig-00010203\ndelete table inet mig-00010203\n"


# --- MTU ---


@pytest.mark.parametrize(("path", "address", "size"), [
    (1500, "203.0.113.5", 1420), (1500, "2001:db8::1", 1420), (1492, "203.0.113.5", 1420), (1492, "2001:db8::1", 1412),
    (1400, "203.0.113.5", 1340), (9000, "203.0.113.5", 1420), (1300, "203.0.113.5", 1280), (65536, "127.0.0.1", 1420),
])  # fmt: skip
def test_mtu_inside(path: int, address: str, size: int) -> None:
    assert mtu.inside(path, address) == size


def test_mtu_of_the_way_to_this_host() -> None:
    assert mtu.from_route(("127.0.0.1", 9)) == mtu.MAX
    assert asyncio.run(mtu.from_routers(("127.0.0.1", 9))) == mtu.MAX
    assert mtu.from_route(("255.255.255.255", 9)) == mtu.MIN  # refused


# --- Records and leftovers ---


def test_a_record_is_written_for_its_owner_alone(removed: list[str]) -> None:
    record = Record(SESSION, "userspace", Process.current(), Process(17, 4))
    record.write()
    assert [dataclasses.replace(each, created=record.created) for each in leftovers.records()] == [record]
    assert record.path.stat().st_mode & 0o777 == 0o600
    assert record.path.parent.stat().st_mode & 0o777 == 0o700
    assert leftovers.sweep() == [] and removed == []  # it is in use
    assert leftovers.remove(record) == [] and removed == ALL
    assert not leftovers.RUN.exists()
    assert leftovers.remove(record) == []


def test_what_a_dead_process_has_left_is_swept(removed: list[str]) -> None:
    Record(SESSION, "userspace", DEAD).write()
    Record(bytes(16), "userspace", Process.current()).write()
    assert leftovers.sweep() == ["mig-00010203"]
    assert removed == ALL
    assert [record.name for record in leftovers.records()] == ["mig-00000000"]
    assert leftovers.sweep() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"owner": 5}', '{"owner": {"pid": 0}}', "[" * 9999])
def test_a_record_that_cannot_be_read_is_as_good(removed: list[str], text: str) -> None:
    path = Record(SESSION, "userspace", None).path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o600)
    assert leftovers.sweep() == ["mig-00010203"]
    assert removed == ALL and not path.exists()


def test_other_files_are_nobodys_tunnel(removed: list[str]) -> None:
    leftovers.RUN.mkdir(parents=True)
    (leftovers.RUN / "notes.json").touch()
    (leftovers.RUN / f".{SESSION.hex()}.json.abcdef").touch()
    assert leftovers.sweep() == [] and removed == []
    assert len(list(leftovers.RUN.iterdir())) == 2
    os.utime(leftovers.RUN / f".{SESSION.hex()}.json.abcdef", (0, 0))  # of a process that was killed long ago
    leftovers.sweep()
    assert [path.name for path in leftovers.RUN.iterdir()] == ["notes.json"]


def test_one_step_that_fails_does_not_stop_the_others(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ProgramFailed("nft: exit status 1: Device or resource busy")

    Record(SESSION, "userspace", DEAD).write()
    with monkeypatch.context() as patch:
        patch.setattr(firewall, "remove", refuse)
        with pytest.raises(LeftoversRemain, match=r"firewall table mig-00010203 \(nft.*busy"):
            leftovers.sweep()
    assert removed == ALL[:2]
    assert leftovers.sweep() == ["mig-00010203"]  # the record had stayed


def test_the_firewall_outlives_an_interface_that_cannot_be_removed(removed: list[str],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, name: str) -> None:
        raise WireGuardFailed(name=name, reason="the kernel refused it: busy")

    Record(SESSION, "userspace", DEAD).write()
    with monkeypatch.context() as patch:
        patch.setattr(kernel.Kernel, "remove", refuse)
        with pytest.raises(LeftoversRemain, match=r"interface mig-00010203 .*busy\); firewall table .* \(kept, as"):
            leftovers.sweep()
    assert removed == ALL[:1]
    assert leftovers.sweep() == ["mig-00010203"]


def test_no_wireguard_go_is_looked_for_where_the_kernel_served(removed: list[str]) -> None:
    Record(SESSION, "kernel", DEAD).write()
    assert leftovers.sweep() == ["mig-00010203"]
    assert removed == ALL[1:]


# --- Making one ---


async def turns() -> None:
    """Everybody who can go on has gone on: each step of what is cancelled here takes one turn of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_up_and_close(links: Links, removed: list[str]) -> None:
    async def run() -> None:
        backend = FakeBackend()
        made = await device.up(Keys(), Path_(), "responder", backend=backend)
        inside = addresses.inside(SESSION, "responder")
        assert (made.name, made.local_address, made.remote_address) == (inside.name, inside.local, inside.remote)
        assert (made.port, made.echo_port, made.mtu) == (inside.tcp_port, inside.echo_port, mtu.MAX)
        peer = f"peer ('127.0.0.1', 40001) {inside.remote}/128 0"
        assert backend.told == ["create mig-00010203 40002", peer]
        assert [what for what, _ in links.asked] == ["firewall", "link set", "addr add", "link set", "route add"]
        assert links.asked[2][1] == {"index": 7, "address": inside.local, "prefixlen": 128, "flags": 2}
        assert links.asked[4][1]["dst"] == f"{inside.remote}/128"
        await made.set_endpoint(("127.0.0.1", 5))
        assert backend.told[-1] == "endpoint ('127.0.0.1', 5)"
        await made.set_mtu(1300)
        assert (links.asked[-1], made.mtu) == (("link set", {"index": 7, "mtu": 1300}), 1300)
        for key in (Keys.private_key, Keys.preshared):
            forms = repr(key)[2:-1], key.hex(), base64.b64encode(key).decode()
            assert not any(form[:12] in repr(made) for form in forms)
        removed.clear()
        await made.close()
        await made.close()
        assert removed == ALL
        assert leftovers.records() == []

    asyncio.run(run())


@simulated
async def test_the_responder_leaves_the_first_word_to_the_initiator(links: Links, removed: list[str]) -> None:
    backend = FakeBackend()
    made = await device.up(Keys(), Path_(), "responder", backend=backend)
    assert backend.told[-1].endswith("/128 0")
    await asyncio.sleep(device.GREETING / 2)
    assert not any(word.startswith("keepalive") for word in backend.told)
    backend.last_handshake = 1.0
    await eventually(lambda: backend.told[-1] == f"keepalive {device.KEEPALIVE}")
    await made.close()
    backend = FakeBackend()
    made = await device.up(Keys(), Path_(), "initiator", backend=backend)
    assert backend.told[-1].endswith(f"/128 {device.KEEPALIVE}")
    await made.close()


@simulated
async def test_late_packets_do_not_lead_back_to_the_old_endpoint(links: Links, removed: list[str]) -> None:
    old, new, moved = ("192.0.2.1", 1), ("192.0.2.2", 2), ("192.0.2.3", 3)
    backend = FakeBackend()
    made = await device.up(Keys(), Path_(), "responder", backend=backend)
    backend.endpoint = old
    await made.set_endpoint(new, hold=1.0)
    backend.endpoint = old
    await eventually(lambda: backend.endpoint == new)
    backend.endpoint = moved  # the peer itself has moved on
    await asyncio.sleep(0.5)
    assert backend.endpoint == moved
    holding = made._holding
    assert holding and not holding.done()
    await eventually(holding.done)
    backend.endpoint = old  # later, so it means it
    await asyncio.sleep(10)
    assert backend.endpoint == old
    await made.close()


def test_what_fails_half_way_is_undone(links: Links, removed: list[str]) -> None:
    backend = FakeBackend(fail=WireGuardFailed(name="mig-00010203", reason="no tun"))
    with pytest.raises(WireGuardFailed, match="no tun"):
        asyncio.run(device.up(Keys(), Path_(), "initiator", backend=backend))
    assert removed == ALL * 2  # before and after
    assert leftovers.records() == []


def test_a_cancelled_one_is_undone_after_its_thread_has_ended(links: Links, removed: list[str]) -> None:
    hold = threading.Event()
    backend = FakeBackend(hold=hold)

    async def run() -> None:
        making = asyncio.ensure_future(device.up(Keys(), Path_(), "initiator", backend=backend))
        await eventually(lambda: backend.told)
        removed.clear()
        try:
            for _ in range(3):  # who presses Ctrl-C once presses it again
                making.cancel()
                await turns()
            assert not making.done() and removed == []
        finally:
            hold.set()
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(run())
    assert removed == ALL
    assert leftovers.records() == []


def test_a_session_has_one_tunnel(links: Links, removed: list[str]) -> None:
    async def run() -> None:
        made = await device.up(Keys(), Path_(), "initiator", backend=FakeBackend())
        removed.clear()
        with pytest.raises(InterfaceFailed, match="already has a tunnel"):
            await device.up(Keys(), Path_(), "initiator", backend=FakeBackend())
        assert removed == []  # the one that is in use is left alone
        await made.close()

    asyncio.run(run())


def test_the_same_session_after_a_crash_begins_by_removing(links: Links, removed: list[str]) -> None:
    Record(SESSION, "userspace", DEAD).write()

    async def run() -> None:
        made = await device.up(Keys(), Path_(), "initiator", backend=FakeBackend())
        assert removed == ALL
        await made.close()

    asyncio.run(run())


def test_ports_that_are_taken_are_not_opened() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        inside = dataclasses.replace(addresses.inside(SESSION, "responder"), local="::1", tcp_port=port)
        with pytest.raises(InterfaceFailed, match=f"port {port}: Address already in use"):
            device._check_ports(inside)


def test_closing_in_a_hurry_waits_for_the_thread(
    links: Links, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def slow(_self: object, _name: str) -> None:
        begun.set()
        goes_on.wait()
        removed.append("slow")

    async def run() -> None:
        made = await device.up(Keys(), Path_(), "initiator", backend=FakeBackend())
        monkeypatch.setattr(userspace.Userspace, "remove", slow)
        removed.clear()
        closing = asyncio.ensure_future(made.close())
        await eventually(begun.is_set)
        try:
            closing.cancel()
            await turns()
            assert not closing.done() and removed == []
        finally:
            goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert removed[0] == "slow" and leftovers.records() == []

    asyncio.run(run())
