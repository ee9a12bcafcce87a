# SPDX-License-Identifier: GPL-2.0-or-later
"""Frozen dataclasses to plain data and back, for facts that come from the other host.

`load` trusts nothing: each value must have the type that the field declares, text and lists have limits, and the
whole has one. Keys that the class does not know are skipped, so that a newer version may send more; a key that is
missing is an error unless its field has a default.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from migrator.errors.connection import ProtocolError

TEXT_MAX = 8192  # characters in one text
LIST_MAX = 20_000  # items in one list or mapping
VALUES_MAX = 200_000  # values in one record, however they are nested
DEPTH_MAX = 12
INTEGER_MAX = 2**64  # sizes and capability sets have 64 bits

T = TypeVar("T")


def dump(record: Any) -> dict[str, Any]:
    """The record as JSON takes it: objects, lists, text, numbers, true, false and null."""
    return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def load(cls: type[T], data: object) -> T:
    """The record that `dump` made; raises ProtocolError for anything else."""
    return typing.cast(T, _Loader().record(cls, data, cls.__name__, 0))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _Loader:
    def __init__(self) -> None:
        self.left = VALUES_MAX

    def record(self, cls: Any, data: object, where: str, depth: int) -> Any:
        entries = self.mapping(data, where, depth)
        values = {}
        for field in dataclasses.fields(cls):
            if field.name in entries:
                hint = _hints(cls)[field.name]
                values[field.name] = self.value(hint, entries[field.name], f"{where}.{field.name}", depth + 1)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise _wrong(where, f"{field.name} is missing")
        return cls(**values)

    def mapping(self, data: object, where: str, depth: int) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise _wrong(where, "is not an object")
        self.count(data, where, depth)
        for key in data:
            if not isinstance(key, str) or len(key) > TEXT_MAX:
                raise _wrong(where, "has a key that is not a short text")
        return data

    def count(self, data: dict[Any, Any] | list[Any], where: str, depth: int) -> None:
        if len(data) > LIST_MAX:
            raise _wrong(where, f"has {len(data)} items, more than {LIST_MAX}")
        if depth > DEPTH_MAX:
            raise _wrong(where, "is nested too deeply")
        self.left -= len(data)
        if self.left < 0:
            raise _wrong(where, f"makes more than {VALUES_MAX} values in all")

    def value(self, hint: Any, data: object, where: str, depth: int) -> Any:
        origin = typing.get_origin(hint)
        if origin in (types.UnionType, typing.Union):
            if data is None and types.NoneType in typing.get_args(hint):
                return None
            (hint,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
            return self.value(hint, data, where, depth)
        if origin is tuple:
            return self.items(typing.get_args(hint), data, where, depth)
        if origin in (dict, Mapping):
            item = typing.get_args(hint)[1]
            entries = self.mapping(data, where, depth)
            return {key: self.value(item, entry, f"{where}[{key[:40]}]", depth + 1) for key, entry in entries.items()}
        if dataclasses.is_dataclass(hint):
            return self.record(hint, data, where, depth)
        return _scalar(hint, data, where)

    def items(self, hints: tuple[Any, ...], data: object, where: str, depth: int) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise _wrong(where, "is not a list")
        self.count(data, where, depth)
        if len(hints) == 2 and hints[1] is Ellipsis:
            hints = (hints[0],) * len(data)
        elif len(hints) != len(data):
            raise _wrong(where, f"has {len(data)} items, not {len(hints)}")
        return tuple(
            self.value(hint, item, f"{where}[{number}]", depth + 1)
            for number, (hint, item) in enumerate(zip(hints, data, strict=True))
        )


def _scalar(hint: Any, data: object, where: str) -> Any:
    if hint is bool and isinstance(data, bool):
        return data
    if hint is int and isinstance(data, int) and not isinstance(data, bool) and abs(data) < INTEGER_MAX:
        return data
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if abs(data) < INTEGER_MAX and math.isfinite(data):
            return float(data)
        raise _wrong(where, "is not a number of a sensible size")
    if hint is str and isinstance(data, str):
        if len(data) <= TEXT_MAX:
            return data
        raise _wrong(where, f"has {len(data)} characters, more than {TEXT_MAX}")
    raise _wrong(where, f"is not {getattr(hint, '__name__', hint)}")


def _wrong(where: str, reason: str) -> ProtocolError:
    return ProtocolError(reason=f"{where[:200]} {reason}")
