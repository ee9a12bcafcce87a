# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a destination may let the container run on its source's word.

The source records when its word runs out before giving it, and a forced rollback waits until then. The destination
computes a moment that is no later, by its own clock, which began to count before the word was given; it must let the
container run before that. So a program, or a whole host, that was asleep and wakes up after the container was forced
back finds that its time is up. This does not hold for a virtual machine whose own clock stood still along with it;
docs/states.md explains what that means.
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

BY_HAND = 600.0  # seconds from create-dump on in which an operator can run restore-dump without the source being asked
LEAST = 60.0  # seconds of it that must be left, or the source is asked all the same: a restore takes time
# By what fraction a span may last longer on the other host. NTP also slews CLOCK_BOOTTIME, either way: the kernel
# accepts up to 10 % (ADJ_TICK in adjtimex(2)), and chronyd up to 8.3 % (maxslewrate).
SLACK = 0.25
MOST = 3600.0  # the most seconds that anyone is given


def given(earlier: Moment | None, seconds: float) -> Moment:
    """What the source records before it gives its word for `seconds`; an earlier word stays in force."""
    lasts = max(seconds, outstanding(earlier))
    # The other host's clock may lag by SLACK over the whole span of the earlier word, not just over the rest of it.
    all_of_it = max(lasts, earlier.lasts) if earlier and outstanding(earlier, SLACK) else lasts
    return boot_clock.until(boot_clock.now() + lasts, all_of_it)


def outstanding(word: Moment | None, slack: float = 0.0) -> float:
    """On the source: seconds for which its word still holds; the full span if this host has been rebooted since.

    With `slack`, that fraction of the full span is added, in case the other host's clock is that much slower.
    """
    if word is None:
        return 0.0
    left = boot_clock.left(dataclasses.replace(word, until=word.until + word.lasts * slack))
    return word.lasts * (1 + slack) if left is None else left


class Leave:
    """The caller's word that it has read the first reply of a Takeover and waits for the second.

    A request may sit in a pipe for hours, for instance while a machine is suspended, and its sender may have given up
    by then. No clock of this machine shows that, because the clock stood still as well. An answer to what was just sent
    does.

    The word holds for as long as the caller says. `since` is a moment before the first reply was sent, by
    `boot_clock.now`, so the word runs out here before it does for the caller, however long this host or this program
    was stopped in between.
    """

    def __init__(self, connection: Connection, since: float) -> None:
        self._connection = connection
        self._since = since
        self._awaited = False
        self.seconds = 0.0  # for how long it holds

    def wait(self) -> float:
        """Wait for the word; returns until when it holds, by `boot_clock.now`. Safe to repeat.

        Raises ConnectionLost or ProtocolError if it does not come.
        """
        if not self._awaited:
            self._awaited = True
            frame = self._connection.receive(within=self._connection.timeout)
            if frame.kind is not Kind.GO:
                raise ProtocolError(reason=f"it sent {frame.kind.name} where it should have said to continue")
            self.seconds = decoded(Go, frame.json()).within
        return self._since + self.seconds
