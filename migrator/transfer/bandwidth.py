# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the way to the other host is, measured before anything else has gone over it.

Requests of growing length are timed, until one takes long enough to tell; what it took to ask nothing is taken off. A
request goes through SSH or the tunnel as a transfer does, so their ciphers count too.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable

from migrator.transfer.messages import Measure, Measured
from migrator.transfer.rpc import Connection

SIZES = (1 << 16, 1 << 18, 1 << 20, 3 << 20)  # bytes; a request may have 4 MiB (frames.CONTROL_MAX)
ENOUGH = 0.05  # seconds
IDLE = 3  # requests for nothing: the quickest of them counts, as any may have had to wait for a processor


def measure(there: Connection, clock: Callable[[], float] = time.monotonic) -> float | None:
    """Bytes a second towards the other host; on a fast network, at least so many. Takes a tenth of a second, or as
    long as 64 KiB take. Raises what `Connection.call` raises.

    None where all of it took little longer than to ask nothing: then that, and not the bytes, was what took time. So
    what is taken off is never more than half, and the answer at most twice too much, whatever else the hosts do.
    """
    data = base64.b64encode(os.urandom(SIZES[-1])).decode()  # not to be compressed
    idle = min(_ask(there, "", clock) for _ in range(IDLE))
    rate = None
    for size in SIZES:
        seconds = _ask(there, data[:size], clock)
        tells = seconds >= 2 * idle
        rate = size / (seconds - idle) if tells and seconds > idle else None
        if tells and seconds >= ENOUGH:
            break
    return rate


def _ask(there: Connection, data: str, clock: Callable[[], float]) -> float:
    begun = clock()
    there.call(Measure(data=data))
    return clock() - begun


def answer(_service: object, _asked: Measure) -> Measured:
    """On the destination: it has arrived."""
    return Measured()
