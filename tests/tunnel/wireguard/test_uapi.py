# SPDX-License-Identifier: GPL-2.0-or-later
"""WireGuard's keys, and the text of the UAPI socket."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel.wireguard.secret_keys import PRESHARED, PRIVATE, PUBLIC, shows_a_secret
from tests.tunnel.wireguard.uapi_socket import ANSWER
from tunnel.wireguard import uapi, wireguard_keys
from tunnel.wireguard.common import Stats


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
