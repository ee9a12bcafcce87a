# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding out where this host can be reached: its own addresses, what reflectors see, and the NAT that this implies."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Sequence
from typing import Protocol

from tunnel.candidates import hops, nat, reflection
from tunnel.candidates.candidate import Candidate, host_candidates, reflexive_candidates, source_towards
from tunnel.candidates.nat import Endpoint, Nat, Observation
from tunnel.candidates.ports import Receiver

TIMEOUT = 0.8  # seconds without any answer after which UDP counts as blocked
REPEAT = 0.1
PATIENCE = 0.15  # seconds that a second reflector is given once a first has answered


class Sender(Protocol):
    """What a punch sends and receives with: `ports.Ports`, or `raw.RawPort` under a live interface."""

    receiver: Receiver | None

    def port(self, via: int = 0) -> int: ...

    def send(self, via: int, to: Endpoint, data: bytes, ttl: int | None = None) -> bool: ...

    def more(self, count: int) -> int: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Local:
    """This side of a punch, before the peer's side is known."""

    sender: Sender
    candidates: tuple[Candidate, ...]
    nat: Nat
    opener_ttl: int = hops.USUAL


async def gather(sender: Sender, reflectors: Sequence[Endpoint], timeout: float = TIMEOUT) -> Local:
    """Ask the reflectors and look at this host's own addresses."""
    ipv4 = [each for each in reflectors if ":" not in each[0]]
    asking, ttl = await asyncio.gather(
        _observe(sender, reflectors, timeout),
        hops.measure(ipv4[0]) if ipv4 else asyncio.sleep(0, hops.USUAL),
    )
    kind = nat.classify([each for each in asking if ":" not in each.seen[0]])
    own = host_candidates(sender.port(), [address for address, _ in reflectors])
    return Local(sender, (*own, *reflexive_candidates(asking, own)), kind, ttl)


async def _observe(sender: Sender, reflectors: Sequence[Endpoint], timeout: float) -> list[Observation]:
    """What each reflector that answered in time has seen."""
    found: dict[Endpoint, Observation] = {}
    nonces = {secrets.token_bytes(reflection.NONCE_SIZE): each for each in reflectors}
    first, every = asyncio.Event(), asyncio.Event()

    def received(_via: int, source: Endpoint, data: bytes) -> None:
        answer = reflection.answered(data)
        # Only a reflector that was asked can know the nonce, and only the address that was asked counts.
        if answer is None or nonces.get(answer[0]) != source:
            return
        local = (source_towards(source[0]) or "", sender.port())
        found[source] = Observation(source, local, (answer[1], answer[2]))
        first.set()
        if len(found) == len(nonces):
            every.set()

    async def ask() -> None:
        while True:
            for nonce, reflector in nonces.items():
                if reflector not in found:
                    sender.send(0, reflector, reflection.request(nonce))
            await asyncio.sleep(REPEAT)

    before, sender.receiver = sender.receiver, received
    asking = asyncio.create_task(ask())
    try:
        async with asyncio.timeout(timeout if nonces else 0):
            await first.wait()
        async with asyncio.timeout(PATIENCE):
            await every.wait()
    except TimeoutError:
        pass
    finally:
        asking.cancel()
        sender.receiver = before
    return list(found.values())
