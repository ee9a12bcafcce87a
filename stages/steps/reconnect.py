# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver's connection to the destination: what counts as lost, and how long to wait until reconnecting.

A transfer resumes after the last acknowledged segment; the driver asks for the destination's state again and continues
from there. The caller says until when that may take: see `Link.wait_after`.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Protocol, Self

from migrator.base import log
from migrator.base.figures import duration
from migrator.errors.connection import ConnectionLost, HostUnreachable
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import OutcomeError
from migrator.errors.this_host import Busy
from migrator.remote.destination import ConnectOptions
from migrator.remote.other_host import connected
from migrator.transfer.rpc import Connection
from tunnel.tunnel_errors import NoPath, PeerAbsent, PeerSilent, RendezvousUnavailable, TunnelBroken, TunnelSilent

LOST = (ConnectionLost, HostUnreachable, NoPath, PeerAbsent, PeerSilent, RendezvousUnavailable, TunnelBroken,
        TunnelSilent)
BRIDGE = 5.0  # seconds that a frozen container waits here for a new connection before it is thawed
HURRY = 1.0  # seconds at most, while a container is frozen or the destination is there
PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0)  # seconds before each new try; the last value from then on


def cause_of(error: DocumentedError) -> DocumentedError:
    """What happened, without the outcome that it led to."""
    return error.cause if isinstance(error, OutcomeError) else error


def is_lost(error: DocumentedError) -> bool:
    """Whether the destination may do what was asked once the network, or the end of an earlier connection, permits.

    Until the destination notices that a connection is gone, and while it ends what was begun over it, the container is
    locked there.
    """
    cause = cause_of(error)
    return isinstance(cause, LOST) or (isinstance(cause, Busy) and bool(cause.host))


class Clock(Protocol):
    """Tells the time and sleeps: the module `time`, or a fake."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class Link:
    """One connection after the other to the same destination."""

    def __init__(self, connect: ConnectOptions, destination: str, reconnect: float, clock: Clock = time) -> None:
        """A lost connection is retried for `reconnect` seconds; 0 for not at all."""
        self.there: Connection | None = None
        self._options = connect
        self._destination = destination
        self._reconnect = reconnect
        self._clock = clock
        self._stack = contextlib.ExitStack()
        self._was_there = False
        self._lost_at = 0.0  # by the clock, the first loss since the last progress; 0 if none
        self._told = False  # the loss was reported
        self._tries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, limit: float | None = None) -> Connection:
        """The existing connection or a new one; raises what `other_host.connected` raises; `limit` is in seconds."""
        if self.there is None:
            self.there = self._stack.enter_context(connected(self._options, self._destination, limit))
            self._was_there = True
            if self._told:
                self._told = False
                seconds = self._clock.monotonic() - self._lost_at
                say("reconnected", f"Connected to {self.there.peer_host} again after {duration(seconds)}.",
                    seconds=round(seconds, 3), tries=self._tries)
        return self.there

    def close(self) -> None:
        """End the connection; safe to repeat."""
        self.there = None
        self._stack.close()

    def progressed(self) -> None:
        """Something was completed: the next loss gets the full time again."""
        self._lost_at, self._told, self._tries = 0.0, False, 0

    def wait_after(self, error: DocumentedError, left: float | None = None) -> None:
        """Wait a little so that the caller can try again; raises `error` if that makes no sense any more.

        There are `left` seconds for it; by default --reconnect, counted from the last progress. The very first
        connection is not retried: a wrong name, or a host that is down, is reported at once.
        """
        if not is_lost(error) or not self._was_there:
            raise error
        hurry = left is not None
        if not hurry and self.there and self.there.acknowledged and not isinstance(error, OutcomeError):
            self.progressed()  # nothing of an interrupted dump is kept
        now = self._clock.monotonic()
        self._lost_at = self._lost_at or now
        if left is None:
            left = self._lost_at + self._reconnect - now
        if left <= 0:
            raise error
        cause = cause_of(error)
        if not isinstance(cause, Busy):
            self.close()
        self._tell(cause, left)
        pause = PAUSES[min(self._tries, len(PAUSES) - 1)]
        self._tries += 1
        self._clock.sleep(min(pause, left, HURRY if hurry or isinstance(cause, Busy) else pause))

    def at_once(self, error: DocumentedError, left: float) -> Connection:
        """A new connection while a container is frozen here; raises `error` if none can be had within BRIDGE seconds.

        Not after a silence, which has taken long enough already; nor through a tunnel, which heals by itself if it can.
        """
        end = self._clock.monotonic() + min(BRIDGE, left)
        trouble = error
        heals = self._destination.startswith("peer:")
        while self._reconnect and not heals and not isinstance(error.__cause__, TimeoutError):
            try:
                self.wait_after(trouble, end - self._clock.monotonic())
                return self.connect(end - self._clock.monotonic())
            except DocumentedError as another:
                if another is trouble:  # the time is up, or it was not a lost connection
                    break
                if not is_lost(another):
                    raise
                trouble = another
        self._told = False
        raise error

    def _tell(self, cause: DocumentedError, left: float) -> None:
        if self._told:
            log.verbose(f"{cause} Trying again, with {duration(left)} left.")
            return
        self._told = True
        say("waiting", f"{cause} Trying again for up to {duration(left)}.", error=cause.to_json(),
            seconds_left=round(left, 3))


def say(kind: str, text: str, **fields: Any) -> None:
    """Print a line for people, or an event of --json (docs/json.md)."""
    if log.level >= log.Level.NORMAL:
        log.say(kind, text, **fields)
