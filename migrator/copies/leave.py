# SPDX-License-Identifier: GPL-2.0-or-later
"""For how long a destination may let the container run on its source's word.

The source records until when its word holds before it gives it, and a forced rollback waits until that is over. The
destination has the moment in which the container is let run no later than that, by its own clock, which began to count
before the word was given. So a program, or a whole host that sleeps, and goes on after the container was forced back,
finds its time over. A virtual machine whose own clock stood still with it does not: docs/states.md says what that
means.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from migrator.base import boot_clock
from migrator.base.boot_clock import Moment
from migrator.errors.connection import ProtocolError
from migrator.transfer.frames import Kind
from migrator.transfer.messages import Go
from migrator.transfer.wire_codec import decoded

if TYPE_CHECKING:
    from migrator.transfer.rpc import Connection

BY_HAND = 600.0  # seconds from create-dump on, for who types restore-dump: he need not ask the source first
LEAST = 60.0  # seconds that must be left of these, or it is asked all the same: a restore takes its time
# By what part of it a time may last longer on the other host. NTP has CLOCK_BOOTTIME run faster or slower, too: the
# kernel takes a tenth either way (ADJ_TICK in adjtimex(2)), and chronyd 8.3 % (maxslewrate).
SLACK = 0.25
MOST = 3600.0  # seconds that are given to whoever asks


def given(earlier: Moment | None, seconds: float) -> Moment:
    """What the source records before it gives its word for so many seconds; an earlier word still holds."""
    lasts = max(seconds, outstanding(earlier))
    # Of all that an earlier one lasts the other clock may be a part behind.
    all_of_it = max(lasts, earlier.lasts) if earlier and outstanding(earlier, SLACK) else lasts
    return boot_clock.until(boot_clock.now() + lasts, all_of_it)


def outstanding(word: Moment | None, slack: float = 0.0) -> float:
    """On the source: seconds for which its word still holds; all of them, where it was rebooted since.

    With `slack`, a part of all of them, also where the other host's clock is so much slower.
    """
    if word is None:
        return 0.0
    left = boot_clock.left(dataclasses.replace(word, until=word.until + word.lasts * slack))
    return word.lasts * (1 + slack) if left is None else left


class Leave:
    """The caller's word that it has read the first reply of a Takeover, and waits for the second.

    A request may lie in a pipe for hours, as where a machine stands still, and its sender may have given up since. No
    clock of this machine shows that, as it stood still too. That the caller has answered what was sent to it does.

    It holds for as long as the caller says. `since` is a moment before the first reply was sent, by `boot_clock.now`:
    so it is over here before it is over for the caller, however long this host, or this program, stood still in
    between.
    """

    def __init__(self, connection: Connection, since: float) -> None:
        self._connection = connection
        self._since = since
        self._awaited = False
        self.seconds = 0.0  # for which it holds

    def wait(self) -> float:
        """Until when it holds, by `boot_clock.now`, once it has come; safe to repeat.

        Raises ConnectionLost or ProtocolError where it does not come.
        """
        if not self._awaited:
            self._awaited = True
            frame = self._connection.receive(within=self._connection.timeout)
            if frame.kind is not Kind.GO:
                raise ProtocolError(reason=f"it sent {frame.kind.name} where it should have said to continue")
            self.seconds = decoded(Go, frame.json()).within
        return self._since + self.seconds
