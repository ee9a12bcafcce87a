# SPDX-License-Identifier: GPL-2.0-or-later
"""The text protocol of wireguard-go's socket (https://www.wireguard.com/xplatform/#configuration-protocol).

A request is `set=1` or `get=1`, lines `key=value` and a blank line; an answer is such lines, `errno=N` and a blank
line.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator

from tunnel.wireguard.common import KEY_SIZE, Endpoint, Stats
from tunnel.wireguard.wireguard_keys import to_hex

GET = b"get=1\n\n"
ANSWER_MAX = 64 * 1024  # bytes; one peer with one address takes less than one thousand
_NUMBER_MAX = 1 << 64
_ERRNO_MAX = 4095


class BadAnswer(Exception):
    """What came from the socket is not an answer."""


def set_device(private_key: bytes, listen_port: int) -> bytes:
    """A request that sets the interface's key and port and removes all peers."""
    return _request(
        ("private_key", to_hex(private_key)),
        ("listen_port", str(_port(listen_port))),
        ("replace_peers", "true"),
    )


def set_peer(public_key: bytes, preshared: bytes, endpoint: Endpoint | None, allowed_ip: str, keepalive: int) -> bytes:
    """A request that creates a peer or sets everything about it."""
    return _request(
        ("public_key", to_hex(public_key)),
        ("preshared_key", to_hex(preshared)),
        *([("endpoint", endpoint_text(endpoint))] if endpoint else []),
        ("persistent_keepalive_interval", str(_interval(keepalive))),
        ("replace_allowed_ips", "true"),
        ("allowed_ip", str(ipaddress.ip_network(allowed_ip))),
    )


def set_endpoint(public_key: bytes, endpoint: Endpoint) -> bytes:
    """A request that moves an existing peer to another endpoint."""
    return _request(("public_key", to_hex(public_key)), ("update_only", "true"), ("endpoint", endpoint_text(endpoint)))


def set_keepalive(public_key: bytes, seconds: int) -> bytes:
    """A request that sets how often an existing peer is sent something."""
    interval = ("persistent_keepalive_interval", str(_interval(seconds)))
    return _request(("public_key", to_hex(public_key)), ("update_only", "true"), interval)


def _request(*lines: tuple[str, str]) -> bytes:
    return b"set=1\n" + "".join(f"{key}={value}\n" for key, value in lines).encode() + b"\n"


def endpoint_text(endpoint: Endpoint) -> str:
    """`A.B.C.D:PORT` or `[ADDRESS]:PORT`; raises ValueError for anything but a numeric address and a port."""
    address = ipaddress.ip_address(endpoint[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise ValueError("an endpoint with a zone")
        return f"[{address}]:{_port(endpoint[1])}"
    return f"{address}:{_port(endpoint[1])}"


def parse_endpoint(text: str) -> Endpoint:
    """The reverse of `endpoint_text`; raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or "%" in host or not port.isascii() or not port.isdecimal() or len(port) > 5:
        raise ValueError("no endpoint")
    host = host[1:-1] if bracketed else host
    address = ipaddress.IPv6Address(host) if bracketed else ipaddress.IPv4Address(host)
    return str(address), _port(int(port))


def _interval(seconds: int) -> int:
    if not 0 <= seconds <= 0xFFFF:
        raise ValueError(f"a keepalive interval of {seconds} s")
    return seconds


def _port(port: int) -> int:
    if not 0 < port <= 0xFFFF:
        raise ValueError(f"a port of {port}")
    return port


# --- Answers ---


def is_complete(answer: bytes | bytearray) -> bool:
    """Whether an answer is complete."""
    return answer.endswith(b"\n\n")


def check_answer(answer: bytes) -> str:
    """Empty if the request was granted, otherwise what was wrong with it in words; raises BadAnswer."""
    code = 0
    for key, value in _lines(answer):
        if key == "errno":
            code = _number(value.removeprefix("-"))
    if code > _ERRNO_MAX:
        raise BadAnswer("its status is not an errno")
    return os.strerror(code) if code else ""


def parse_stats(answer: bytes) -> Stats | None:
    """What an answer to GET says about the first peer, None if there is none; raises BadAnswer.

    Unknown keys are ignored, as the protocol requires; the private and preshared keys are never kept.
    """
    peers = 0
    fields: dict[str, int] = {}
    endpoint: Endpoint | None = None
    for key, value in _lines(answer):
        if key == "public_key":
            if len(value) != 2 * KEY_SIZE:
                raise BadAnswer("a key of the wrong size")
            peers += 1
        elif peers == 1 and key in _COUNTERS:
            fields[key] = _number(value)
        elif peers == 1 and key == "endpoint":
            # An endpoint with a zone, or written in a later version's own way, is one that we cannot report.
            with contextlib.suppress(ValueError):
                endpoint = parse_endpoint(value)
    if not peers:
        return None
    handshake = fields.get("last_handshake_time_sec", 0) + fields.get("last_handshake_time_nsec", 0) / 1e9
    return Stats(handshake, fields.get("rx_bytes", 0), fields.get("tx_bytes", 0), endpoint)


_COUNTERS = ("last_handshake_time_sec", "last_handshake_time_nsec", "rx_bytes", "tx_bytes")


def _lines(answer: bytes) -> Iterator[tuple[str, str]]:
    """The lines of a whole answer, which ends with one `errno`; raises BadAnswer, which shows no value."""
    if not answer.endswith(b"\n\n") or len(answer) > ANSWER_MAX:
        raise BadAnswer("it has no end")
    try:
        lines = answer[:-2].decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise BadAnswer("it is not text") from None
    for number, line in enumerate(lines, 1):
        key, equals, value = line.partition("=")
        if not equals or not key.replace("_", "").isalnum() or not value.isprintable():
            raise BadAnswer(f"line {number} is not a key and a value")
        if (key == "errno") != (number == len(lines)):
            raise BadAnswer("its status is not its last line")
        yield key, value


def _number(value: str) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 20 or int(value) >= _NUMBER_MAX:
        raise BadAnswer("a number was expected")
    return int(value)
