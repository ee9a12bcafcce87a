# SPDX-License-Identifier: GPL-2.0-or-later
"""The preflight's question to the other host, and the facts in its answer; see `migrator.transfer.messages`.

There are many facts, and every text in them comes from the other host: besides types they have limits, individually and
in total.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.base import names
from migrator.errors.connection import ProtocolError
from migrator.preflight.facts.host_facts import HostFacts, Query
from migrator.transfer.messages import check_origin
from migrator.transfer.wire_codec import Answer, Request

TEXT_MAX = 8192  # characters in one text
LIST_MAX = 20_000  # items in one list or mapping
VALUES_MAX = 200_000  # values in one message, at whatever depth
DEPTH_MAX = 12
INTEGER_MAX = 2**64  # sizes and capability sets have 64 bits


class HostAnswer(Answer, frozen=True, kw_only=True):
    facts: HostFacts
    fenced_copy: bool  # whether what has that name there is a copy of the container left by an earlier move

    @classmethod
    def look(cls, data: Mapping[str, Any]) -> None:
        bounded(data)


class AskFacts(Request[HostAnswer], frozen=True, kw_only=True):
    op = "facts"
    query: Query
    lxcpath: str | None = None
    name: str
    source_name: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        names.container_name(self.name)
        check_origin(self.origin)

    @classmethod
    def look(cls, data: Mapping[str, Any]) -> None:
        bounded(data)


def bounded(data: object) -> None:
    """Raise ProtocolError if plain data exceeds one of the limits above."""
    left, level = VALUES_MAX, [data]
    for _ in range(DEPTH_MAX + 3):  # below the message itself and its facts, and what is in the deepest
        below: list[object] = []
        for value in level:
            if isinstance(value, dict | list):
                if len(value) > LIST_MAX:
                    raise ProtocolError(reason=f"its facts have a list of {len(value)} items, more than {LIST_MAX}")
                left -= len(value)
                below += (*value, *value.values()) if isinstance(value, dict) else value
            else:
                _scalar(value)
        if left < 0:
            raise ProtocolError(reason=f"its facts make more than {VALUES_MAX} values in all")
        level = below
    if level:
        raise ProtocolError(reason="its facts are nested too deeply")


def _scalar(value: object) -> None:
    if isinstance(value, str) and len(value) > TEXT_MAX:
        raise ProtocolError(reason=f"its facts have a text of {len(value)} characters, more than {TEXT_MAX}")
    if isinstance(value, int | float) and not abs(value) < INTEGER_MAX:  # NaN fails this too
        raise ProtocolError(reason="its facts have a number that is not of a sensible size")
