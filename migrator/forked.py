# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of the roots of processes, and may never be answered, is asked by a child that can be left behind.

Somebody may have made the root of his process so that to ask for it, or to let go of it at last, waits for a server of
his: of an overlay on a FUSE of his the kernel may copy a folder up before it makes a handle (ovl_encode_fh in
fs/overlayfs/export.c), and who closes the last reference to such a mount unmounts it, which writes all of it out
(sync_filesystem). Once that server has the request, not even SIGKILL ends the wait (request_wait_answer in
fs/fuse/dev.c). A thread, as in `asking`, would keep all of this program from ending, and its locks held.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from migrator import holder, log

Told = TypeVar("Told", bool, str, str | None)

LIMIT = 5.0  # seconds that an answer may take
LIMIT_NEXT = 0.5  # and once one has not come: who keeps that one back may have made many such
_PAUSE = 0.1  # seconds between two looks whether it has come
_silent: set[tuple[int, int]] = set()  # the processes, with when they began, whose answer has not come


def those(pids: Sequence[int], question: Callable[[int], bool]) -> list[int]:
    """The processes of which it is so. One that keeps the answer back is none: it has its root on nothing of ours."""
    return [pid for pid, told in answers(pids, question).items() if told]


def answers(pids: Sequence[int], question: Callable[[int], Told]) -> dict[int, Told]:
    """The answers for those processes of which there is one in time, in that order. The question raises nothing."""
    found: dict[int, Told] = {}
    left = [pid for pid in pids if _known(pid) not in _silent]
    while left:
        for pid, told in _asked(left, question):
            found[pid] = told
        left = left[len([pid for pid in left if pid in found]):]
        if left:
            silent = left.pop(0)
            _silent.add(_known(silent))
            log.warning(f"process {silent} keeps it back where its root lies: it is taken for none that was moved")
    return found


def _known(pid: int) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        return pid, holder.start_time(pid)
    return pid, 0  # it has ended


def _asked(pids: Sequence[int], question: Callable[[int], Told]) -> Iterator[tuple[int, Told]]:
    """The answers for one after the other, up to the first that does not come. Without a limit where nothing can be
    forked, and for what a child that was killed has left.
    """
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as answered:  # noqa: PTH123 -- a descriptor
        try:
            child = os.fork()
        except OSError:
            os.close(write)
            yield from ((pid, question(pid)) for pid in pids)
            return
        if not child:
            _answer(write, pids, question)
        os.close(write)
        told, ended = 0, False
        try:
            for line in _lines(answered.fileno()):
                yield pids[told], json.loads(line)
                told += 1
            ended = True
        except TimeoutError:
            return
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0 if ended else os.WNOHANG)
        yield from ((pid, question(pid)) for pid in pids[told:])


def _answer(write: int, pids: Sequence[int], question: Callable[[int], Told]) -> None:
    """In the child: nothing is held open by it, neither a lock nor what another program waits for the end of."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, write)
        os.closerange(write + 1, 1 << 20)
        for pid in pids:
            os.write(write, json.dumps(question(pid)).encode() + b"\n")
    finally:
        os._exit(0)


def _lines(fd: int) -> Iterator[bytes]:
    """What the child writes, line by line, to its end; raises TimeoutError where one is waited for in vain."""
    rest, pauses = b"", 0
    while True:
        if not select.select([fd], [], [], _PAUSE)[0]:
            pauses += 1  # counted: who was stopped (Ctrl-Z) has not waited
            if pauses >= round((LIMIT_NEXT if _silent else LIMIT) / _PAUSE):
                raise TimeoutError
            continue
        some = os.read(fd, 65536)
        if not some:
            return
        *lines, rest = (rest + some).split(b"\n")
        yield from lines
        pauses = 0
