# SPDX-License-Identifier: GPL-2.0-or-later
"""An agent that waits at a server: it leaves one that floods it, and comes back only after a pause."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tests.tunnel.clock import eventually, look, pass_time
from tunnel.identity.own_identity import Identity
from tunnel.identity.tunnel_config import Server
from tunnel.signalling.standby import BACKOFF, Waiting


@contextlib.asynccontextmanager
async def leaves_and_comes_back(there: Server, said: list[str]) -> AsyncIterator[None]:
    """The block is entered once the agent has left, and before the pause is over; `said` is filled with its reports.

    For use on a loop that stands still (`tests.tunnel.clock.standing`): no other limit passes meanwhile.
    """
    waiting = Waiting([there], Identity.generate(), said.append)
    await eventually(lambda: len(said) == 2)
    assert said[0] == f"waiting at {there}"
    assert said[1].endswith("; next try in 1 s") and "that was all" not in said[1]
    for _ in range(5):
        await look()
    assert len(said) == 2, "not at once"
    yield
    pass_time(BACKOFF[0])
    await eventually(lambda: len(said) == 4)
    assert said[3].endswith("; next try in 2 s")
    await waiting.close()
