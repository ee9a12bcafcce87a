# SPDX-License-Identifier: GPL-2.0-or-later
"""How good a tunnel's path is, and noticing within about a second that it is dead.

An echo that comes back has travelled both ways, so each side watches the whole path on its own.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import statistics
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from migrator.base.clock import now
from tunnel.health.echo import UDP_HEADERS, Arrived, Echo
from tunnel.interface import mtu
from tunnel.interface.device import GREETING, Interface
from tunnel.tunnel_errors import TunnelSilent
from tunnel.wireguard import Endpoint

INTERVAL = 0.2  # seconds between two echoes of a watch
DEAD_AFTER = 1.0  # seconds without an answer
ECHOES = 20  # in a measurement
RECENT = 50  # echoes on which a watch reports

# What a path must be like for a container to be frozen over it.
LOSS_MAX = 0.05
RTT_MAX = 1000.0  # ms
JITTER_MAX = 100.0  # ms
RATE_MIN = 1.0  # Mbit/s

# Trains grow until one takes long enough to be measured or is cut by losses: a slow path is not flooded.
_TRAINS = (64 << 10, 256 << 10, 1 << 20, 4 << 20)  # bytes
_TRAIN_LONG = 0.05  # seconds

_PATIENCE = 0.4  # seconds for large echoes to come back


@dataclasses.dataclass(frozen=True)
class Quality:
    """A path as the echoes have measured it."""

    rtt_ms: float | None  # median round trip; None if nothing came back
    loss: float  # fraction of the echoes without an answer, 0 to 1
    jitter: float  # ms, mean difference between one round trip and the next
    mbit_s: float | None = None  # what arrived of a short burst, UDP payload; None if it was not tried or was lost
    echoes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def quality(times: Iterable[float | None], mbit_s: float | None = None) -> Quality:
    """The quality that results from round trips: seconds in the order of asking, None for each that was lost."""
    asked = list(times)
    found = [seconds * 1000 for seconds in asked if seconds is not None]
    return Quality(
        rtt_ms=statistics.median(found) if found else None,
        loss=1 - len(found) / len(asked) if asked else 0.0,
        jitter=statistics.fmean(abs(b - a) for a, b in itertools.pairwise(found)) if len(found) > 1 else 0.0,
        mbit_s=mbit_s,
        echoes=len(asked),
    )


def stable(found: Quality) -> tuple[bool, str]:
    """Whether a path is good enough to freeze a container, and in words why not (or what it is like)."""
    if found.rtt_ms is None:
        return False, f"none of {found.echoes} echoes came back"
    if found.loss > LOSS_MAX:
        return False, f"{found.loss:.0%} of {found.echoes} echoes were lost, at most {LOSS_MAX:.0%} may be"
    if found.rtt_ms > RTT_MAX:
        return False, f"a round trip takes {found.rtt_ms:.0f} ms, {RTT_MAX:.0f} ms is the most"
    if found.jitter > JITTER_MAX:
        return False, f"round trips differ by {found.jitter:.0f} ms, {JITTER_MAX:.0f} ms is the most"
    if found.mbit_s is not None and found.mbit_s < RATE_MIN:
        return False, f"it carries {found.mbit_s:.2f} Mbit/s, {RATE_MIN:g} is the least"
    rate = f", {found.mbit_s:.0f} Mbit/s" if found.mbit_s is not None else ""
    return True, f"round trip {found.rtt_ms:.1f} ms, loss {found.loss:.0%}{rate}"


async def measure(echo: Echo, *, count: int = ECHOES, interval: float = 0.02, timeout: float = 1.0,
                  throughput: bool = True, size: int = mtu.MIN - UDP_HEADERS) -> Quality:
    """Measure a path with `count` echoes `interval` seconds apart and, unless told otherwise, a short burst of data.

    It takes under a second on a good path, and at most `timeout` and about three seconds more on a bad one. `size` is
    that of the burst's datagrams: what the tunnel's MTU leaves, or less.
    """
    asked = []
    for number in range(count):
        asked.append(asyncio.ensure_future(echo.ask(timeout=timeout)))
        if number < count - 1:
            await asyncio.sleep(interval)
    try:
        times = await asyncio.gather(*asked)
    except asyncio.CancelledError:
        for each in asked:
            each.cancel()
        raise
    answered = any(seconds is not None for seconds in times)
    return quality(times, await rate(echo, size=size) if throughput and answered else None)


async def rate(echo: Echo, *, size: int = mtu.MIN - UDP_HEADERS) -> float | None:
    """Mbit/s of UDP payload that get through in a burst of at most 5.3 MiB, a twentieth of a second if possible."""
    found = None
    for total in _TRAINS:
        arrived = await echo.load(total, size=size)
        if arrived is None:
            return found
        found = _rate_of(arrived, size) or found
        if arrived.seconds > _TRAIN_LONG or arrived.bytes < total * 0.9:
            break
    return found


def _rate_of(arrived: Arrived, size: int) -> float | None:
    if arrived.datagrams < 2 or arrived.seconds <= 0:
        return None
    # The clock starts when the first one arrives.
    return (arrived.bytes - size) * 8 / arrived.seconds / 1e6


async def first_answer(interface: Interface, echo: Echo, *, limit: float = 5.0) -> float:
    """Wait until the tunnel carries something both ways; the seconds that a round trip took.

    Raises TunnelSilent, which says whether WireGuard has completed a handshake at all.
    """
    end = now() + limit
    if interface.role == "responder":  # its echoes would make its WireGuard initiate first, see interface.up
        await interface.shaken(min(GREETING, limit / 2))
    answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def answered(seconds: float) -> None:
        if not answer.done():
            answer.set_result(seconds)

    while (left := end - now()) > 0:
        echo.send(answered)
        await asyncio.wait([answer], timeout=min(0.05, left))
        if answer.done():
            return answer.result()
    shaken = (await interface.stats()).last_handshake > 0
    reason = "WireGuard's handshake succeeded, but no echo came back" if shaken else "there was no WireGuard handshake"
    raise TunnelSilent(name=interface.name, reason=f"{reason} within {limit:g} s")


async def tune(interface: Interface, echo: Echo, endpoint: Endpoint) -> int:
    """Set the interface's MTU to what the path carries, and return it. To be called again after a heal.

    Echoes of several sizes are sent at once; if the largest comes back this takes two round trips, otherwise 0.4 s.
    Answers are small: each side finds out about the direction in which it sends itself.
    """
    patience = max(_PATIENCE, 3 * (await echo.ask(timeout=2.0) or 0.0))
    if interface.backend.kind == "kernel":  # lets routers fragment its packets, so that echoes prove nothing
        most = await mtu.from_routers(endpoint)
    else:
        most = mtu.from_route(endpoint)
    if most != interface.mtu:
        await interface.set_mtu(most)
    largest = await _largest(echo, [most, *(size for size in mtu.STEPS if size < most)], patience)
    # wireguard-go forbids fragmentation, until a router refuses a packet; from then on the kernel fragments them
    # itself. Such an echo comes back, but a path is slow that way: what the kernel has learnt meanwhile counts.
    found = min(largest, mtu.from_route(endpoint))
    if found != interface.mtu:
        await interface.set_mtu(found)
    return found


async def _largest(echo: Echo, sizes: list[int], patience: float) -> int:
    """The largest packet, in bytes, that comes back; the smallest allowed if none does."""
    back: set[int] = {mtu.MIN}
    news = asyncio.Event()

    def answered(size: int) -> Callable[[float], None]:
        def note(_seconds: float) -> None:
            back.add(size)
            news.set()

        return note

    for part in (0.3, 0.3, 0.4):  # each time those that have not come back are sent once more
        for size in sizes:
            if size not in back:
                echo.send(answered(size), size=size - UDP_HEADERS)
        # Each wait is timed on its own: if this process is held up, answers lie unread, except the last wait's.
        end = now() + part * patience
        while max(back) < max(sizes) and (left := end - now()) > 0:
            news.clear()
            try:
                await asyncio.wait_for(news.wait(), left)
            except TimeoutError:
                break
    return max(back)


class Watch:
    """Sends echoes all the time, and calls `on_dead` with the reason when the path has died.

    `on_dead` heals it or raises, and then `run` raises the same. The echoes go on meanwhile: `back` waits for one.
    """

    def __init__(self, echo: Echo, on_dead: Callable[[str], Awaitable[None]], *, interval: float = INTERVAL,
                 limit: float = DEAD_AFTER) -> None:
        self.deaths = 0
        self._echo = echo
        self._on_dead = on_dead
        self._interval = interval
        self._limit = limit
        self._since = 0.0  # the moment from which silence counts
        self._answers = asyncio.Event()
        self._recent: collections.deque[float | None] = collections.deque(maxlen=RECENT)

    @property
    def silent(self) -> float:
        """Seconds since the last answer, or since counting began."""
        return now() - max(self._echo.heard, self._since)

    def quality(self) -> Quality:
        """The quality according to the latest echoes, except those that may still come back."""
        return quality(self._recent)

    async def back(self, timeout: float) -> bool:
        """Wait for an answer to an echo sent from now on; False if there is none within `timeout` seconds."""
        self._answers.clear()
        asked = now()
        end = asked + timeout

        def answered(_seconds: float) -> None:
            self._answers.set()

        while (left := end - now()) > 0:
            self._echo.send(answered)
            try:
                await asyncio.wait_for(self._answers.wait(), min(0.05, left))
            except TimeoutError:
                continue
            return True
        return False

    async def run(self) -> None:
        """Watch until cancelled, or until `on_dead` raises."""
        healing: asyncio.Future[None] | None = None
        self._since = now()
        due = now()
        try:
            while True:
                self._send()
                due += self._interval
                await asyncio.sleep(max(0.0, due - now()))
                woken = now()
                if woken - due > self._interval:
                    # This process was held up, and answers may lie unread: give them time.
                    self._since, due = woken, woken
                if healing and healing.done():
                    healing.result()
                    healing, self._since = None, woken
                elif not healing and self.silent >= self._limit:
                    self.deaths += 1
                    reason = f"no echo for {self.silent:.1f} s"
                    healing = asyncio.ensure_future(self._on_dead(reason))
        finally:
            if healing and not healing.done():
                healing.cancel()
                await asyncio.wait([healing])

    def _send(self) -> None:
        place: list[float | None] = [None]

        def answered(seconds: float) -> None:
            place[0] = seconds

        def settle() -> None:
            self._recent.append(place[0])

        self._echo.send(answered)
        asyncio.get_running_loop().call_later(self._limit, settle)
