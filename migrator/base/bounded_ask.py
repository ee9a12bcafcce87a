# SPDX-License-Identifier: GPL-2.0-or-later
"""What may never answer, such as a file on NFS, SMB or FUSE whose server is gone, is asked for only so long.

On the way of a thaw, say. Who waits in the kernel for such an answer cannot be ended: a thread does that, and who has
not answered is not asked again before it has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Told = TypeVar("Told")

LIMIT = 5.0  # seconds that an answer may take
_PAUSE = 0.1  # seconds between two looks whether it has come


class Asking:
    """Of those that are asked, each known by a string.

    One that is late for the second time is not asked any more, as it would be waited for at each look; unless it is to
    be asked `always`.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self.silent: set[str] = set()  # who has not answered, and is not to be asked
        self.back: set[str] = set()  # who had not, and has since
        self._telling = threading.Lock()

    def answers(self, asked: Sequence[tuple[str, Callable[[], Told]]]) -> list[Told]:
        """For one after the other, up to the first that is waited for in vain, which is `silent` from then on.

        What is called raises nothing. Without a limit where there can be no more threads.
        """
        told: list[Told] = []
        given_up: list[str] = []

        def ask() -> None:
            for who, call in asked:
                answer = call()
                with self._telling:
                    told.append(answer)
                    if given_up:
                        if self._always or who not in self.back:
                            self.silent.discard(who)
                        self.back.add(who)
                        return

        thread = threading.Thread(target=ask, name="migrator-asking", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return [call() for _, call in asked]
        come = pauses = 0
        while thread.is_alive() and pauses < round(LIMIT / _PAUSE):  # counted: who was stopped (Ctrl-Z) has not waited
            thread.join(_PAUSE)
            come, pauses = len(told), pauses + 1 if come == len(told) else 0
        with self._telling:
            if len(told) < len(asked):
                given_up.append(asked[len(told)][0])
                self.silent.add(given_up[0])
            return told[:]
