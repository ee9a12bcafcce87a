# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks where the roots of processes are, from a child that can be abandoned, because a user can make that call hang.

A root can be set up so that looking at it, or dropping the last reference to it, waits for a user's server. For an
overlay on that user's FUSE file system, the kernel may copy a directory up before it makes a handle (ovl_encode_fh in
fs/overlayfs/export.c), and closing the last reference to such a mount unmounts it, which writes everything out
(sync_filesystem). Once that server has the request, not even SIGKILL ends the wait (request_wait_answer in
fs/fuse/dev.c). A thread, as in `bounded_ask`, would keep this whole program from ending, and its locks held.

A root on btrfs is on a disk of this host, so for those we wait however long it takes.
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

from migrator.base import log, process_id
from migrator.host import roots

Question = Callable[[Path], str | bool | None]
Told = tuple[int, str | bool | None]

LIMIT = 5.0  # seconds within which we must learn whether a root is on btrfs
_PAUSE = 0.1  # seconds between two checks for that answer
_FILES_MAX = 1 << 20  # the most files a process can have open (nr_open in proc_sys_fs(5))
_silent: set[tuple[int, int | None]] = set()  # the processes that never answered, each with its start time


def those(pids: Sequence[int], question: Question) -> list[int]:
    """The processes whose root is on btrfs and for which `question` is true.

    A root whose location cannot be learned in time counts as not on btrfs, because on btrfs nobody can hold the answer
    back.
    """
    return [pid for pid, told in answers(pids, question).items() if told]


def answers(pids: Sequence[int], question: Question) -> dict[int, str | bool | None]:
    """What `question` returned for each root, and None for a root that is not on btrfs.

    A process that has ended, or whose root never answers, is missing from the result. `question` must not raise.
    """
    found: dict[int, str | bool | None] = {}
    # Ask each once: the kernel's list of a cgroup's processes may contain duplicates.
    left = [pid for pid in dict.fromkeys(pids) if (pid, process_id.began(pid)) not in _silent]
    while left:
        asked = 0
        try:
            for told in _asked(left, question):
                asked += 1
                found.update([told] if told else [])
            return found
        except TimeoutError:
            silent = left[asked]
            _silent.add((silent, process_id.began(silent)))
            log.warning(f"Process {silent} does not let anyone see where its root directory is: it is not counted as "
                        "part of this migration")
            left = left[asked + 1:]
    return found


def _asked(pids: Sequence[int], question: Question) -> Iterator[Told | None]:
    """Answers one after the other, None for a process that has ended; raises TimeoutError at the first that hangs.

    Whatever the child left unanswered (killed by the OOM killer, or it could not be forked) is asked in this process.
    """
    come = 0
    with _child(pids, question) as lines:
        for line in lines:
            yield (pids[come], json.loads(line)) if line else None
            come += 1
    for pid in pids[come:]:
        yield _one(pid, question)


def _one(pid: int, question: Question, is_held: Callable[[], object] = lambda: None) -> Told | None:
    """`is_held` is called as soon as the root is known to be on btrfs."""
    with contextlib.suppress(OSError):
        with roots.on_btrfs(pid) as root:
            if root is not None:
                is_held()
                return pid, question(root)
        return pid, None
    return None


@contextlib.contextmanager
def _child(pids: Sequence[int], question: Question) -> Iterator[Iterator[bytes]]:
    """Lines, as written by `_answer`, from a child that is killed at the end; no lines if none can be forked."""
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
                # Ctrl-C right after the fork: the child must not run this program's code beside it
                if os.getpid() != ours:
                    os._exit(0)
        yield _lines(read, ended)


def _end(child: int, ended: list[bool]) -> None:
    # ECHILD where SIGCHLD is ignored, as some daemons leave it
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0 if ended else os.WNOHANG)


def _answer(write: int, pids: Sequence[int], question: Question) -> NoReturn:
    """In the child: for each process, write "+" followed by the answer if its root is on btrfs, each as soon as known.

    Otherwise "null", or nothing if it has ended; then the end of the line.

    The child keeps nothing open: no lock, and no pipe on whose end another program waits. It takes no signals, because
    Ctrl-C reaches every process of a terminal; the parent is the one to be interrupted, and it kills the child.
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
    """What the child writes about each process, until it ends.

    Raises TimeoutError if it hangs before it knows where a root is.
    """
    poll, rest, pauses = select.poll(), b"", 0
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(_PAUSE * 1000):
            pauses += not rest  # count pauses, not the clock: time spent stopped (Ctrl-Z) is not time spent waiting
            if pauses >= round(LIMIT / _PAUSE):
                raise TimeoutError
            continue
        if not (some := os.read(fd, 65536)):
            ended.append(True)
            return
        *lines, rest = (rest + some).split(b"\n")
        yield from (line.removeprefix(b"+") for line in lines)
        pauses = 0
