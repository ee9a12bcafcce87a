"""Whether compressing pays: only where the network is slower than zstd is beside a dump.

Compressing takes processor time from CRIU, which dumps at the same time, and from encryption. On a network that takes
the data as fast as that, the container would only be frozen for longer (bench/compression.py).
"""

from __future__ import annotations

ZSTD = 150e6  # raw bytes a second: zstd at level 1 got 80 to 200 MB through beside CRIU, with two cores for both hosts
BUFFERED = 1 << 20  # bytes: the first ones only fill the kernel's and SSH's buffers, at no rate of the network's
SMALL = 64 << 10  # bytes: less than that tells nothing of a rate
_FADES = 0.8  # what an older measurement still counts when the next one comes


class NetworkRate:
    """How fast a connection has taken bytes so far, recent ones counting more; slow moments count by their length."""

    def __init__(self) -> None:
        self._written = 0
        self._bytes = self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """`size` bytes were written to the network within `seconds`."""
        if self._written > BUFFERED and size > SMALL:
            self._bytes = self._bytes * _FADES + size
            self._seconds = self._seconds * _FADES + seconds
        self._written += size

    @property
    def known(self) -> bool:
        return self._seconds > 0

    @property
    def is_slow(self) -> bool:
        """Whether compressing pays, as far as is known: it does until the network has shown that it is fast."""
        return not self.known or self._bytes / self._seconds < ZSTD
