# SPDX-License-Identifier: GPL-2.0-or-later
"""Strict reading of what comes from the wire: sizes first, then types; one error for everything that does not fit."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, NoReturn


class Malformed(Exception):
    """What was received is not what the protocol allows. The text never repeats the received bytes."""


def load(data: bytes | str, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes, without NaN, without duplicate keys; raises Malformed."""
    if len(data) > limit:
        raise Malformed(f"it has more than {limit} bytes")
    try:
        found = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    # RecursionError: a few kilobytes of brackets are enough for it.
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    if not isinstance(found, dict):
        raise Malformed("it is not a JSON object")
    return found


def dump(message: dict[str, Any]) -> bytes:
    """A JSON object as it is sent: UTF-8, no whitespace."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate keys")
    return found


def text(message: dict[str, Any], key: str, limit: int) -> str:
    """The string under `key`, at most `limit` characters, all printable; raises Malformed."""
    value = message.get(key)
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise Malformed(f"{key} is not a string of at most {limit} printable characters")
    return value


def number(message: dict[str, Any], key: str, low: float, high: float) -> float:
    """The number under `key`, between `low` and `high`, both included; raises Malformed."""
    value = message.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise Malformed(f"{key} is not a number from {low:g} to {high:g}")
    if not math.isfinite(value):
        raise Malformed(f"{key} is not finite")
    return value


def integer(message: dict[str, Any], key: str, low: int, high: int) -> int:
    """The whole number under `key`, between `low` and `high`, both included; raises Malformed."""
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Malformed(f"{key} is not a whole number from {low} to {high}")
    return value


def data(message: dict[str, Any], key: str, limit: int) -> bytes:
    """The bytes under `key`, sent as base64, at most `limit` of them; raises Malformed."""
    return decode(text(message, key, (limit + 2) // 3 * 4), key)


def exactly(message: dict[str, Any], key: str, size: int) -> bytes:
    """The bytes under `key`, sent as base64, exactly `size` of them; raises Malformed."""
    value = data(message, key, size)
    if len(value) != size:
        raise Malformed(f"{key} is not {size} bytes long")
    return value


def items(message: dict[str, Any], key: str, limit: int) -> list[Any]:
    """The list under `key`, at most `limit` long; raises Malformed."""
    value = message.get(key)
    if not isinstance(value, list) or len(value) > limit:
        raise Malformed(f"{key} is not a list of at most {limit}")
    return value


def encode(value: bytes) -> str:
    """Bytes in the form that JSON carries them."""
    return base64.b64encode(value).decode()


def decode(value: str, what: str = "it") -> bytes:
    """The bytes of a base64 string in its one canonical form; raises Malformed."""
    try:
        found = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what} is not base64") from None
    if encode(found) != value:
        raise Malformed(f"{what} is not canonical base64")
    return found
