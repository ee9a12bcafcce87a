# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the roots of processes lie is asked by a child that can be left behind, as somebody may keep that back.

A root can be made so that to ask for it, or to let go of it at last, waits for a server of somebody's: of an overlay on
a FUSE of his the kernel may copy a folder up before it makes a handle (ovl_encode_fh in fs/overlayfs/export.c), and who
closes the last reference to such a mount unmounts it, which writes all of it out (sync_filesystem). Once that server
has the request, not even SIGKILL ends the wait (request_wait_answer in fs/fuse/dev.c). A thread, as in
`bounded_ask`, would keep all of this program from ending, and its locks held.

What lies on btrfs is on a disk of this host: what is asked of that is waited for, however long it takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from migrator.base import log
from migrator.host import roots
from migrator.record import container_lock

Question = Callable[[Path], str | bool | None]
Told = tuple[int, str | bool | None]

LIMIT = 5.0  # seconds within which it must be told that a root lies on btrfs, or that it does not
_PAUSE = 0.1  # seconds between two looks whether that has come
_FILES_MAX = 1 << 20  # that a process can have open (nr_open in proc_sys_fs(5))
_silent: set[tuple[int, int | None]] = set()  # the processes, with when they began, that have kept it back


def those(pids: Sequence[int], question: Question) -> list[int]:
    """The processes whose root lies on btrfs, and of it that is true. One that keeps back where it lies has it on none:
    who has can keep nothing back.
    """
    return [pid for pid, told in answers(pids, question).items() if told]


def answers(pids: Sequence[int], question: Question) -> dict[int, str | bool | None]:
    """What is answered for each root, and None for one that is not on btrfs; nothing for a process that has ended, or
    keeps it back. The question raises nothing.
    """
    found: dict[int, str | bool | None] = {}
    # Each once: the kernel's list of a cgroup may have one twice.
    left = [pid for pid in dict.fromkeys(pids) if (pid, container_lock.began(pid)) not in _silent]
    while left:
        asked = 0
        try:
            for told in _asked(left, question):
                asked += 1
                found.update([told] if told else [])
            return found
        except TimeoutError:
            silent = left[asked]
            _silent.add((silent, container_lock.began(silent)))
            log.warning(f"Process {silent} does not let anyone see where its root directory is: it is not counted as "
                        "part of this migration")
            left = left[asked + 1:]
    return found


def _asked(pids: Sequence[int], question: Question) -> Iterator[Told | None]:
    """For one after the other, None for one that has ended; raises TimeoutError at the first that keeps it back.

    What the child has left unanswered, as it was killed where there is no memory, or there can be none, is asked here.
    """
    come = 0
    with _child(pids, question) as lines:
        for line in lines:
            yield (pids[come], json.loads(line)) if line else None
            come += 1
    for pid in pids[come:]:
        yield _one(pid, question)


def _one(pid: int, question: Question, is_held: Callable[[], object] = lambda: None) -> Told | None:
    """`is_held` is called once it is told that its root lies on btrfs."""
    with contextlib.suppress(OSError):
        with roots.on_btrfs(pid) as root:
            if root is not None:
                is_held()
                return pid, question(root)
        return pid, None
    return None


@contextlib.contextmanager
def _child(pids: Sequence[int], question: Question) -> Iterator[Iterator[bytes]]:
    """Lines, as `_answer` writes them, of a child that is ended then; none where none can be forked."""
    ended, ours = list[bool](), os.getpid()
    with contextlib.ExitStack() as stack:
        read, write = os.pipe()
        stack.callback(os.close, read)
        with contextlib.ExitStack() as written:
            written.callback(os.close, write)
            try:
                if not (child := os.fork()):
                    _answer(write, pids, question)
                stack.callback(_end, child, ended)
            except OSError as error:
                log.verbose(f"could not fork to examine the roots of processes: {error.strerror}")
            finally:
                if os.getpid() != ours:  # Ctrl-C at its very beginning: it goes no way of this program's beside it
                    os._exit(0)
        yield _lines(read, ended)


def _end(child: int, ended: list[bool]) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # where SIGCHLD is ignored, as a daemon leaves it
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0 if ended else os.WNOHANG)


def _answer(write: int, pids: Sequence[int], question: Question) -> NoReturn:
    """In the child: for each process "+" and the answer where its root lies on btrfs, as soon as either is known; else
    "null", or nothing where it has ended, and the end of a line.

    It holds nothing open: neither a lock, nor what another program waits for the end of. No signal reaches it, as
    Ctrl-C does each process of a terminal: who is interrupted is this program, which ends it.
    """
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, write)
        os.closerange(write + 1, _FILES_MAX)
        for pid in pids:
            told = _one(pid, question, lambda: os.write(write, b"+"))
            os.write(write, (json.dumps(told[1]) if told else "").encode() + b"\n")
    finally:
        os._exit(0)


def _lines(fd: int, ended: list[bool]) -> Iterator[bytes]:
    """What the child says of each process, to its end; raises TimeoutError where it does not come to where a root lies.
    """
    poll, rest, pauses = select.poll(), b"", 0
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(_PAUSE * 1000):
            pauses += not rest  # counted: who was stopped (Ctrl-Z) has not waited
            if pauses >= round(LIMIT / _PAUSE):
                raise TimeoutError
            continue
        if not (some := os.read(fd, 65536)):
            ended.append(True)
            return
        *lines, rest = (rest + some).split(b"\n")
        yield from (line.removeprefix(b"+") for line in lines)
        pauses = 0
