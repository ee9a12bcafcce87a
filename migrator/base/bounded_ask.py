# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits how long we wait for what may never answer, such as a file on NFS, SMB or FUSE whose server is gone.

That may be on the way to a thaw, for example. A wait for such an answer inside the kernel cannot be interrupted, so a
thread does the waiting; whoever has not answered is not asked again until that answer has come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Told = TypeVar("Told")

LIMIT = 5.0  # seconds that an answer may take
_PAUSE = 0.1  # seconds between two checks for it


class Asking:
    """Questions to several parties, each identified by a string.

    One that is late for the second time is not asked any more, because each look would wait for it; unless it is to be
    asked `always`.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self.silent: set[str] = set()  # those that have not answered, and are not to be asked
        self.back: set[str] = set()  # those that had not, and have since
        self._telling = threading.Lock()

    def answers(self, asked: Sequence[tuple[str, Callable[[], Told]]]) -> list[Told]:
        """The answers in order, up to the first that does not come in time; its party is `silent` from then on.

        What is called must not raise. There is no limit if no more threads can be created.
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
        # Count pauses, not the clock: time spent stopped (Ctrl-Z) is not waiting.
        while thread.is_alive() and pauses < round(LIMIT / _PAUSE):
            thread.join(_PAUSE)
            come, pauses = len(told), pauses + 1 if come == len(told) else 0
        with self._telling:
            if len(told) < len(asked):
                given_up.append(asked[len(told)][0])
                self.silent.add(given_up[0])
            return told[:]
