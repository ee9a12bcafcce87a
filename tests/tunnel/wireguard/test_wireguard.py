# SPDX-License-Identifier: GPL-2.0-or-later
"""WireGuard's back ends: the text of the UAPI socket, the bytes of netlink, and which of the two is taken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pyroute2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import AsyncWireGuard, wgmsg

from migrator.base import process_id
from tunnel.tunnel_errors import WireGuardFailed, WireGuardMissing
from tunnel.wireguard import picker, uapi, userspace, wireguard_keys
from tunnel.wireguard.common import Backend, Stats
from tunnel.wireguard.kernel import Kernel, stats_of
from tunnel.wireguard.userspace import Userspace

PRIVATE = bytes(range(32))
PUBLIC = bytes(range(32, 64))
PRESHARED = bytes(range(64, 96))
NAME = "mig-01234567"


def shows_a_secret(text: str) -> bool:
    """Whether one of the two secret keys is in a text, in any form that it could have."""
    forms = (form for key in (PRIVATE, PRESHARED) for form in (key.hex(), wireguard_keys.to_base64(key), repr(key)))
    return any(form in text for form in forms)


# --- Keys ---


def test_a_public_key_is_that_of_rfc_7748() -> None:
    # Section 5.2: the first iteration.
    assert wireguard_keys.public_key(b"\x09" + bytes(31)).hex().startswith("422c8e7a6227d7bca1350b3e2bb7279f")


def test_private_keys_are_clamped_and_all_different() -> None:
    found = [wireguard_keys.private_key() for _ in range(50)]
    assert len(set(found)) == 50
    assert all(key[0] & 7 == 0 and key[31] >> 6 == 1 for key in found)


def test_a_key_of_another_size_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31") as caught:
        wireguard_keys.to_hex(PRIVATE[:31])
    assert PRIVATE[:31].hex() not in str(caught.value)


# --- The UAPI text ---


def test_uapi_requests() -> None:
    assert uapi.set_device(PRIVATE, 40000).decode() == (
        f"set=1\nprivate_key={PRIVATE.hex()}\nlisten_port=40000\nreplace_peers=true\n\n"
    )
    assert uapi.set_peer(PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15).decode() == (
        f"set=1\npublic_key={PUBLIC.hex()}\npreshared_key={PRESHARED.hex()}\nendpoint=203.0.113.5:40001\n"
        "persistent_keepalive_interval=15\nreplace_allowed_ips=true\nallowed_ip=fd00::2/128\n\n"
    )
    assert uapi.set_keepalive(PUBLIC, 15).decode() == (
        f"set=1\npublic_key={PUBLIC.hex()}\nupdate_only=true\npersistent_keepalive_interval=15\n\n"
    )
    with pytest.raises(ValueError, match="interval"):
        uapi.set_keepalive(PUBLIC, 65536)
    assert uapi.set_endpoint(PUBLIC, ("2001:db8::1", 40001)).decode() == (
        f"set=1\npublic_key={PUBLIC.hex()}\nupdate_only=true\nendpoint=[2001:db8::1]:40001\n\n"
    )


@pytest.mark.parametrize("endpoint", [
    ("example.org", 1), ("203.0.113.5", 0), ("203.0.113.5", 65536), ("fe80::1%eth0", 1),
    ("203.0.113.5\nremove=true", 1),
])  # fmt: skip
def test_what_is_no_endpoint_never_becomes_text(endpoint: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        uapi.set_endpoint(PUBLIC, endpoint)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_endpoints_read_back(address: Any, port: int) -> None:
    endpoint = (str(address), port)
    assert uapi.parse_endpoint(uapi.endpoint_text(endpoint)) == endpoint


ANSWER = (
    f"private_key={PRIVATE.hex()}\nlisten_port=40000\npublic_key={PUBLIC.hex()}\npreshared_key={PRESHARED.hex()}\n"
    "protocol_version=1\nendpoint=[2001:db8::1]:33\nlast_handshake_time_sec=1700000000\n"
    "last_handshake_time_nsec=500000000\ntx_bytes=148\nrx_bytes=92\npersistent_keepalive_interval=15\n"
    "allowed_ip=fd00::2/128\nerrno=0\n\n"
).encode()


def test_uapi_answer() -> None:
    assert uapi.parse_stats(ANSWER) == Stats(1700000000.5, 92, 148, ("2001:db8::1", 33))
    assert uapi.parse_stats(b"listen_port=1\nerrno=0\n\n") is None
    assert uapi.check_answer(b"errno=0\n\n") == ""
    assert uapi.check_answer(b"errno=-98\n\n") == os.strerror(98)
    assert uapi.check_answer(b"errno=22\n\n") == os.strerror(22)


def test_what_a_later_version_may_add_is_passed_over() -> None:
    later = ANSWER.replace(b"tx_bytes", b"colour=blue\nendpoint=[fe80::1%eth0]:33\ntx_bytes")
    assert uapi.parse_stats(later) == uapi.parse_stats(ANSWER)


def test_only_the_first_peer_counts() -> None:
    two = ANSWER.replace(b"errno", f"public_key={'cd' * 32}\nrx_bytes=5\nerrno".encode())
    assert uapi.parse_stats(two) == uapi.parse_stats(ANSWER)


@pytest.mark.parametrize("answer", [
    b"", b"\n\n", b"errno=0", b"errno=0\n", b"rx_bytes=1\n\n", b"errno=0\nrx_bytes=1\n\n", b"errno=\n\n",
    b"errno=99999999999999999999\n\n", b"errno=5000\n\n", b"\xff=1\nerrno=0\n\n", b"line\nerrno=0\n\n",
    b"errno=0\n\nerrno=0\n\n", b"a=" + b"x" * uapi.ANSWER_MAX + b"\nerrno=0\n\n",
    ANSWER.replace(b"rx_bytes=92", b"rx_bytes=-1"), ANSWER.replace(b"rx_bytes=92", b"rx_bytes=" + b"9" * 21),
    ANSWER.replace(PUBLIC.hex().encode(), b"ab"),
])  # fmt: skip
def test_answers_that_make_no_sense(answer: bytes) -> None:
    with pytest.raises(uapi.BadAnswer) as caught:
        uapi.check_answer(answer)
        uapi.parse_stats(answer)
    assert not shows_a_secret(str(caught.value))


lines = st.lists(st.one_of(st.binary(max_size=30), st.sampled_from(ANSWER.split(b"\n"))), max_size=20).map(b"\n".join)


@given(st.one_of(st.binary(max_size=300), lines, lines.map(lambda some: some + b"\nerrno=0\n\n")))
def test_any_answer_is_understood_or_refused(answer: bytes) -> None:
    for parse in (uapi.check_answer, uapi.parse_stats):
        with contextlib.suppress(uapi.BadAnswer):
            parse(answer)


@given(st.integers(0, len(ANSWER) - 1), st.binary(max_size=3))
def test_answers_with_a_mistake_in_them(at: int, put: bytes) -> None:
    with contextlib.suppress(uapi.BadAnswer):
        uapi.parse_stats(ANSWER[:at] + put + ANSWER[at + 1 :])


# --- The userspace back end, with something else on the other end of its socket ---


@contextlib.contextmanager
def answering(folder: Path, answer: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """A UAPI socket that gives `answer` to each request; yields what it was asked. An empty answer: none, for ever."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / f"{NAME}.sock"))
        server.listen()
        kept = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(65536))
                found = answer(asked[-1])
                if found:
                    with contextlib.suppress(OSError):
                        connection.sendall(found)
                    connection.close()
                else:
                    kept.append(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(userspace, "SOCKETS", tmp_path)
    return tmp_path


def test_userspace_asks_its_socket(sockets: Path) -> None:
    with answering(sockets, lambda request: ANSWER if request == uapi.GET else b"errno=0\n\n") as asked:
        Userspace().set_peer(NAME, PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15)
        Userspace().set_endpoint(NAME, PUBLIC, ("203.0.113.6", 40002))
        assert Userspace().stats(NAME) == uapi.parse_stats(ANSWER)
    assert asked == [
        uapi.set_peer(PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15),
        uapi.set_endpoint(PUBLIC, ("203.0.113.6", 40002)),
        uapi.GET,
    ]


@pytest.mark.parametrize(("answer", "reason"), [
    (b"errno=-98\n\n", "Address already in use"),
    (b"", "timed out"),
    (b"errno=0\n", "broke off its answer"),
    (b"nonsense\n\n", "an invalid answer"),
    (b"a" * (uapi.ANSWER_MAX + 1), "broke off its answer"),
])  # fmt: skip
def test_userspace_reports_what_goes_wrong_and_no_key(sockets: Path, answer: bytes, reason: str) -> None:
    with answering(sockets, lambda _: answer), pytest.raises(WireGuardFailed, match=reason) as caught:
        Userspace(600.0 if answer else 0.1).set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 15)
    assert not shows_a_secret(f"{caught.value} {caught.value.to_json()}")


def test_userspace_reports_that_nobody_listens(sockets: Path) -> None:
    with pytest.raises(WireGuardFailed, match="cannot be asked"):
        Userspace().stats(NAME)
    (sockets / f"{NAME}.sock").touch()  # no socket at all
    with pytest.raises(WireGuardFailed, match="cannot be asked"):
        Userspace().stats(NAME)


def test_wireguard_go_is_started_without_secrets_and_what_it_says_is_told(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "wireguard-go"
    program.write_text("#!/bin/sh\necho ERROR: no tun; tr '\\0' '\\n' </proc/$$/environ\n"
                       "tr '\\0' ' ' </proc/$$/cmdline; head -c 200000 /dev/zero | tr '\\0' x; exit 3\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(userspace, "ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("A_SECRET_OF_OURS", "hush")
    started: list[int] = []
    said = []

    def logged(log: int) -> str:
        said.append(os.pread(log, 1 << 20, 0).decode())
        return ""

    monkeypatch.setattr(userspace, "_logged", logged)
    with pytest.raises(WireGuardFailed, match="ended at its start"):
        Userspace().create(NAME, PRIVATE, 40000, started=started.append)
    assert len(started) == 1
    assert "ERROR: no tun" in said[0] and "WG_PROCESS_FOREGROUND=1" in said[0] and f"-f {NAME}" in said[0]
    assert "hush" not in said[0] and not shows_a_secret(said[0])
    assert len(said[0]) == 64 * 1024  # it can go on for ever and take no more


# --- The kernel back end: bytes ---
#
# The numbers are those of the kernel's include/uapi/linux/wireguard.h, not pyroute2's.

NESTED = 0x8000


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute: length, type, data, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """The reverse, for all attributes in `data`, in their order."""
    found = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        assert 4 <= length <= len(data)
        found.append((kind & ~NESTED, data[4:length]))
        data = data[length + -length % 4 :]
    return found


class Recorder(AsyncWireGuard):  # type: ignore[misc]
    """pyroute2's encoder, with a list in place of the kernel."""

    prid, pid = 0x1D, 4711

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, _to: object) -> None:
        self.sent.append(bytes(data))

    async def get(self) -> AsyncIterator[dict[str, Any]]:
        yield {"header": {"error": None}}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the kernel would get of the messages that are sent from now on."""
    recorder = Recorder()

    class Socket:
        def __enter__(self) -> Socket:
            return self

        def __exit__(self, *_: object) -> None: ...

        def set(self, *arguments: Any, **settings: Any) -> None:
            asyncio.run(recorder.set(*arguments, **settings))

    monkeypatch.setattr(pyroute2, "WireGuard", Socket)
    return recorder.sent


def device(message: bytes) -> dict[int, bytes]:
    """The attributes of a WG_CMD_SET_DEVICE message, whose headers are checked."""
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    command, version = struct.unpack_from("=BBxx", message, 16)
    assert (length, kind) == (len(message), Recorder.prid)
    assert flags == 0x1 | 0x4  # REQUEST, ACK
    assert (command, version) == (1, 1)  # WG_CMD_SET_DEVICE, WG_GENL_VERSION
    found = attributes(message[20:])
    assert dict(found).pop(2) == NAME.encode() + b"\0"  # WGDEVICE_A_IFNAME
    return dict(found)


def only_peer(message: bytes) -> dict[int, bytes]:
    ((number, peer),) = attributes(device(message)[8])  # WGDEVICE_A_PEERS: a nested list
    assert number in (0, 1)
    return dict(attributes(peer))


def test_kernel_device_message(sent: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[tuple[Any, ...]] = []

    class Links:
        def __enter__(self) -> Links:
            return self

        def __exit__(self, *_: object) -> None: ...

        def link(self, *arguments: Any, **settings: Any) -> None:
            links.append((arguments, settings))

    monkeypatch.setattr(pyroute2, "IPRoute", Links)
    Kernel().create(NAME, PRIVATE, 40000)
    assert links == [(("add",), {"ifname": NAME, "kind": "wireguard"})]
    (message,) = sent
    assert device(message) == {2: NAME.encode() + b"\0", 3: PRIVATE, 6: struct.pack("=H", 40000)}


def test_kernel_peer_message_over_ipv4(sent: list[bytes]) -> None:
    Kernel().set_peer(NAME, PUBLIC, PRESHARED, ("203.0.113.5", 40001), "fd00::2/128", 15)
    peer = only_peer(sent[0])
    assert peer.pop(1) == PUBLIC
    assert peer.pop(2) == PRESHARED
    assert peer.pop(3) == struct.pack("=I", 0x2)  # WGPEER_F_REPLACE_ALLOWEDIPS
    # struct sockaddr_in: the family in the host's order, the port in the network's, eight zeros
    address = bytes([203, 0, 113, 5])
    assert peer.pop(4) == struct.pack("=H", socket.AF_INET) + struct.pack("!H", 40001) + address + bytes(8)
    assert peer.pop(5) == struct.pack("=H", 15)
    ((_, allowed),) = attributes(peer.pop(9))
    assert dict(attributes(allowed)) == {
        1: struct.pack("=H", socket.AF_INET6),
        2: socket.inet_pton(socket.AF_INET6, "fd00::2"),
        3: bytes([128]),
    }
    assert not peer


def test_kernel_endpoint_message_over_ipv6(sent: list[bytes]) -> None:
    Kernel().set_endpoint(NAME, PUBLIC, ("2001:db8::1", 40001))
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert only_peer(sent[0]) == {
        1: PUBLIC,
        3: struct.pack("=I", 0x4),  # WGPEER_F_UPDATE_ONLY
        # struct sockaddr_in6: family, port, flow information, address, scope
        4: struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 40001, 0) + address + bytes(4),
    }


def test_kernel_keepalive_message(sent: list[bytes]) -> None:
    Kernel().set_keepalive(NAME, PUBLIC, 15)
    assert only_peer(sent[0]) == {1: PUBLIC, 3: struct.pack("=I", 0x4), 5: struct.pack("=H", 15)}


def test_kernel_peer_without_endpoint(sent: list[bytes]) -> None:
    Kernel().set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 0)
    assert 4 not in only_peer(sent[0])


@pytest.mark.parametrize(("endpoint", "bytes_of_it"), [
    (("203.0.113.5", 40001), struct.pack("=H", socket.AF_INET) + b"\x9c\x41" + bytes([203, 0, 113, 5]) + bytes(8)),
    (("2001:db8::1", 33), struct.pack("=H", socket.AF_INET6) + b"\0\x21" + bytes(4)
     + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(4)),
])  # fmt: skip
def test_kernel_answer(endpoint: tuple[str, int], bytes_of_it: bytes) -> None:
    peer = b"".join([
        attribute(1, PUBLIC), attribute(2, PRESHARED), attribute(4, bytes_of_it), attribute(5, struct.pack("=H", 15)),
        attribute(6, struct.pack("=qq", 1700000000, 500000000)), attribute(7, struct.pack("=Q", 92)),
        attribute(8, struct.pack("=Q", 148)), attribute(10, struct.pack("=I", 1)),
    ])  # fmt: skip
    assert stats_of([answer(peer)]) == Stats(1700000000.5, 92, 148, endpoint)


def test_kernel_answer_without_a_peer() -> None:
    assert stats_of([answer(None)]) is None


def answer(peer: bytes | None) -> Any:
    """A WG_CMD_GET_DEVICE answer as pyroute2 reads it."""
    body = struct.pack("=BBxx", 0, 1) + attribute(2, NAME.encode() + b"\0") + attribute(3, PRIVATE)
    if peer is not None:
        body += attribute(8 | NESTED, attribute(0 | NESTED, peer))
    message = wgmsg(struct.pack("=IHHII", 16 + len(body), 0x1D, 2, 1, 4711) + body)
    message.decode()
    return message


@pytest.mark.parametrize(("error", "reason"), [
    (NetlinkError(errno.ENODEV, "No such device"), ""),
    (NetlinkError(errno.ENOENT, "No such file or directory"), "the kernel has no WireGuard module"),
    (NetlinkError(errno.EPERM, "Operation not permitted"), "the kernel refuses it: Operation not permitted"),
    (OSError(errno.EPROTONOSUPPORT, "Protocol not supported"), "the kernel refuses it: Protocol not supported"),
])  # fmt: skip
def test_kernel_is_asked(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(pyroute2, "WireGuard", refuse)
    assert Kernel().why_not() == reason


def test_this_kernel_gives_an_answer() -> None:
    async def from_a_loop() -> str:
        return Kernel().why_not()  # pyroute2 has a loop of its own

    assert isinstance(Kernel().why_not(), str)
    assert asyncio.run(from_a_loop()) == Kernel().why_not()


def test_kernel_refusals_show_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NetlinkError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(pyroute2, "WireGuard", refuse)
    with pytest.raises(WireGuardFailed, match="Operation not supported") as caught:
        Kernel().set_peer(NAME, PUBLIC, PRESHARED, None, "fd00::2/128", 0)
    assert not shows_a_secret(f"{caught.value} {caught.value.to_json()}")


# --- Which one ---


def fake(kind: str, problem: str) -> type[Backend]:
    return type(kind, (), {"kind": kind, "why_not": lambda _self: problem})


def test_the_first_that_the_system_grants_is_taken() -> None:
    assert picker.choose([fake("kernel", ""), fake("userspace", "")]).backend.kind == "kernel"
    second = picker.choose([fake("kernel", "no module"), fake("userspace", "")])
    assert (second.backend.kind, second.reason) == ("userspace", "kernel: no module")
    with pytest.raises(WireGuardMissing, match="kernel: no module; userspace: not installed"):
        picker.choose([fake("kernel", "no module"), fake("userspace", "not installed")])
    assert isinstance(picker.named("kernel"), Kernel) and isinstance(picker.named("userspace"), Userspace)


@pytest.mark.parametrize(("version", "fast"), [
    ("0.0.20260522-1", True), ("0.0.20231211-1", True), ("0.0.20230223-1", False), ("0.0.20220316-1+b4", False),
    ("1.2.3", True), ("0.0.20230223-1ubuntu0.24.04.3", False),
])  # fmt: skip
def test_package_versions(version: str, fast: bool) -> None:
    assert picker.is_fast(version) == fast


def test_an_old_package_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, count in (("0.0.20230223-1", 1), ("0.0.20260522-1", 0), ("", 0)):
        monkeypatch.setattr(picker, "package_version", lambda version=version: version)
        assert len(picker.warnings(Userspace())) == count
        assert picker.warnings(Kernel()) == []


def test_no_dpkg_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise process_id.ProgramFailed("the program dpkg-query is not installed")

    monkeypatch.setattr(process_id, "run", missing)
    assert picker.package_version() == ""


def test_userspace_asks_for_program_and_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_id, "which", lambda _: None)
    assert "not installed" in Userspace().why_not()
    monkeypatch.setattr(process_id, "which", lambda _: "/usr/bin/wireguard-go")
    monkeypatch.setattr(userspace, "TUN", tmp_path / "tun")
    assert "No such file" in Userspace().why_not()
    (tmp_path / "tun").touch()
    assert Userspace().why_not() == ""


def test_popen_is_the_only_way_that_wireguard_go_is_started(monkeypatch: pytest.MonkeyPatch, sockets: Path) -> None:
    class Refused(Exception):
        pass

    def popen(argv: list[str], **settings: Any) -> None:
        assert argv == ["wireguard-go", "-f", NAME]
        assert settings["start_new_session"] and settings["stdin"] == subprocess.DEVNULL
        assert set(settings["env"]) == {"PATH", "LC_ALL", "WG_PROCESS_FOREGROUND", "LOG_LEVEL"}
        raise Refused

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Refused):
        Userspace().create(NAME, PRIVATE, 40000)
