# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts that want to pair meet under a nameplate and exchange a few notes; neither has an identity here yet."""

from __future__ import annotations

import asyncio
from typing import Any

from migrator.base import strict_json
from tunnel.rendezvous.limits import Buckets, Limits
from tunnel.rendezvous.lines import Line
from tunnel.rendezvous.nameplates import Nameplates
from tunnel.signalling.link import MESSAGE_MAX

NOTES_MAX = 6  # from each side; the protocol needs three
NOTE_MAX = 4096  # bytes
NAMEPLATE_MAX = 6  # characters


class Meetings:
    """All nameplates and the pairs that have met."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nameplates: Nameplates[Line] = Nameplates(limits)
        self._rate = Buckets(limits.pairings, limits.addresses)
        self._partners: dict[Line, Line] = {}

    async def attend(self, line: Line, first: dict[str, Any]) -> None:
        """Serve one side until it goes or its time is up: without a nameplate it is given one, with one it visits."""
        wanted = strict_json.text(first, "nameplate", NAMEPLATE_MAX)
        if not self._rate.take(line.address):
            line.end("too many pairings from this address")
            return
        number = wanted or self._nameplates.open(line, line.address)
        if number is None:
            line.end("too many codes wait already")
            return
        try:
            async with asyncio.timeout(self._limits.pairing_life):
                if wanted:
                    if not self._visit(line, wanted):
                        line.end("nobody waits under this code")
                        return
                else:
                    line.put({"type": "nameplate", "nameplate": number})
                await self._pass_notes(line)
        except TimeoutError:
            line.end("the code's time is up")
        finally:
            self._nameplates.close(number, line)
            partner = self._partners.pop(line, None)
            if partner:
                self._partners.pop(partner, None)
                partner.put({"type": "gone"})

    def _visit(self, line: Line, number: str) -> bool:
        host = self._nameplates.visit(number)
        if not host:
            return False
        self._partners[host] = line
        self._partners[line] = host
        line.put({"type": "met"})
        return True

    async def _pass_notes(self, line: Line) -> None:
        notes = 0
        async for data in line.socket:
            message = strict_json.load(data, MESSAGE_MAX)
            note = strict_json.data(message, "data", NOTE_MAX)
            notes += 1
            partner = self._partners.get(line)
            if message.get("type") != "note" or notes > NOTES_MAX or not partner:
                line.end("no note was expected")
                return
            partner.put({"type": "note", "data": strict_json.encode(note)})
