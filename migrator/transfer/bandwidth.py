# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the path to the other host is, measured before anything else has gone over it.

Requests of growing size are timed until one takes long enough to be meaningful; the time of an empty request is
subtracted. Requests go through SSH or the tunnel just as a transfer does, so the cost of their ciphers is included.
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
IDLE = 3  # empty requests: the fastest of them counts, because any may have had to wait for a CPU


def measure(there: Connection, clock: Callable[[], float] = time.monotonic) -> float | None:
    """Bytes per second towards the other host; on a fast network, at least that many.

    Takes a tenth of a second, or as long as 64 KiB take. Raises what `Connection.call` raises.

    None if every request took little longer than an empty one: then it was not the bytes that took time. So never more
    than half is subtracted, and the answer is at most twice too high, whatever else the hosts are doing.
    """
    data = base64.b64encode(os.urandom(SIZES[-1])).decode()  # incompressible
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
