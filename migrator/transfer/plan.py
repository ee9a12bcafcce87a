# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration in one go is going to do: how many rounds, and how long the container will be down. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from migrator.base.figures import duration, size
from migrator.record.detail import DiskRound

# Frozen whatever the size: freeze, snapshot, starting CRIU on both hosts, records in both journals.
FIXED_SECONDS = 0.35
# Down whatever the size, besides the time its programs take to end: snapshot, import, start, records in both journals.
FIXED_SECONDS_STOPPED = 0.3
# CRIU's share, with images in memory.
DUMP_SECONDS_PER_BYTE = 0.8 / (1 << 30)
RESTORE_SECONDS_PER_BYTE = 0.6 / (1 << 30)
# A round that carried or took less than this measures the start of programs and not the network.
RATE_BYTES, RATE_SECONDS = 1 << 20, 0.01

STOP_TIMEOUT = 60.0  # seconds that a container may take to shut down, as with lxc-stop(1)

SMALL_BYTES, SMALL_SECONDS = 1 << 20, 0.3
SHRINKS = 0.7  # another round is worth it while each carries at most this fraction of the one before


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of disk data that has been sent."""

    bytes: int  # of the disk, including those that were there from an earlier attempt
    wire_bytes: int  # sent over the network, compressed
    seconds: float
    full: bool

    @classmethod
    def sent(cls, recorded: Iterable[DiskRound]) -> tuple[Round, ...]:
        """Those in a journal's record that are complete."""
        return tuple(cls(each.bytes, each.wire_bytes or 0, each.seconds or 0.0, bool(each.full))
                     for each in recorded if each.bytes is not None)


def stop(rounds: Sequence[Round], max_rounds: int) -> tuple[str, str]:
    """Whether to send no more rounds: the rule that says so and its reason in words; ("", "") to continue."""
    if not rounds:
        return "", ""
    last = rounds[-1]
    if last.bytes <= SMALL_BYTES or last.seconds <= SMALL_SECONDS:
        return "small", f"the last round had {size(last.bytes)} and took {duration(last.seconds)}"
    if len(rounds) >= max_rounds:
        return "limit", f"--max-rounds {max_rounds} is reached"
    if len(rounds) > 1 and last.bytes > SHRINKS * rounds[-2].bytes:
        return "no-gain", f"the container writes as fast as it can be sent: {size(last.bytes)} again"
    return "", ""


def rate(rounds: Sequence[Round], measured: float | None = None) -> float | None:
    """Bytes per second on the wire: the rate `measured` or, if higher, the largest round's; None if there is neither.

    The network carries at least both: a round may have been slowed down by disks, or by --bwlimit.
    """
    usable = [each for each in rounds if each.wire_bytes >= RATE_BYTES and each.seconds >= RATE_SECONDS]
    largest = max(usable, key=lambda each: each.wire_bytes, default=None)
    return max(measured or 0.0, largest.wire_bytes / largest.seconds if largest else 0.0) or None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known before and between the rounds."""

    name: str
    destination: str
    disk_bytes: int  # of the container's whole disk
    memory_bytes: int | None  # None with --no-memory
    max_rounds: int
    max_downtime: float
    rounds: tuple[Round, ...] = ()
    stop_timeout: float = STOP_TIMEOUT
    measured: float | None = None  # bytes per second, see `migrator.transfer.bandwidth`

    @property
    def rate(self) -> float | None:
        return rate(self.rounds, self.measured)

    @property
    def still_seconds(self) -> float | None:
        """Seconds that it will be frozen, or stopped (not counting the time that its programs take to end).

        None while the network's rate is unknown.
        """
        if self.rate is None:
            return None
        changed = self.rounds[-1].wire_bytes if self.rounds and not self.rounds[-1].full else 0
        if self.memory_bytes is None:
            return FIXED_SECONDS_STOPPED + changed / self.rate
        # Memory is sent while it is being dumped: the slower of the two counts.
        moved = self.memory_bytes * max(DUMP_SECONDS_PER_BYTE, 1 / self.rate)
        return FIXED_SECONDS + changed / self.rate + moved + self.memory_bytes * RESTORE_SECONDS_PER_BYTE

    def to_json(self) -> dict[str, Any]:
        still, bytes_per_second = self.still_seconds, self.rate
        word = "stopped" if self.memory_bytes is None else "frozen"
        return {
            "disk_bytes": self.disk_bytes, "memory_bytes": self.memory_bytes, "max_rounds": self.max_rounds,
            "max_downtime": self.max_downtime, "rounds": len(self.rounds),
            "bytes_per_second": None if bytes_per_second is None else round(bytes_per_second),
            f"predicted_{word}_seconds": None if still is None else round(still, 3),
        }

    @property
    def text(self) -> str:
        """For people, before the first round."""
        if self.memory_bytes is None:
            return (f"Plan: move {self.name} to {self.destination} without its memory. Disk {size(self.disk_bytes)}, "
                    f"sent while it runs, in up to {self.max_rounds} rounds; then it is stopped here (killed after "
                    f"{duration(self.stop_timeout)}), what has changed is sent, and it is started there. "
                    f"{self.prediction} It is started again here if that takes longer than "
                    f"{duration(self.max_downtime)}.")
        return (f"Plan: move {self.name} to {self.destination}. Disk {size(self.disk_bytes)}, sent while it runs, in "
                f"up to {self.max_rounds} rounds; memory {size(self.memory_bytes)}, sent while it is frozen. "
                f"{self.prediction} It is thawed here if that takes longer than {duration(self.max_downtime)}.")

    @property
    def prediction(self) -> str:
        still, bytes_per_second = self.still_seconds, self.rate
        if still is None or bytes_per_second is None:
            word = "stopped" if self.memory_bytes is None else "frozen"
            return f"The network's rate is not known yet, nor is the time {word}."
        if self.memory_bytes is None:
            return (f"At {size(bytes_per_second)}/s it will be stopped for about {duration(still)}, plus as long as "
                    "its programs take to end.")
        return f"At {size(bytes_per_second)}/s it will be frozen for about {duration(still)}."


def price(name: str, stop_timeout: float = STOP_TIMEOUT) -> str:
    """What moving without the memory costs a user, in words."""
    return (f"The price: the processes of {name} are ended and restarted, what they hold only in memory is lost, and "
            f"its connections break. It is down for as long as its programs take to end (killed after {stop_timeout:g} "
            "s), its last changes on disk to be sent (as a rule under a second), and it takes to boot.")


def compared(predicted: float | None, actual: float, stop_seconds: float | None = None) -> str:
    """Predicted against actual, in words; with --no-memory, its programs took `stop_seconds` of that to end."""
    known = "which could not be predicted" if predicted is None else f"predicted {predicted:.2f} s"
    if stop_seconds is None:
        return f"Frozen for {actual:.2f} s ({known})."
    return f"Stopped for {actual:.2f} s: {stop_seconds:.2f} s to end, {actual - stop_seconds:.2f} s to move ({known})."
