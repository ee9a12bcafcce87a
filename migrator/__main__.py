# SPDX-License-Identifier: GPL-2.0-or-later
"""Entry point: signals, the command line, and the one place that turns every exception into an exit status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TextIO

from migrator.base import log, standard_files
from migrator.errors import EXIT_OK, Interrupted
from migrator.errors.convert import as_ours
from migrator.errors.documented import DocumentedError
from migrator.record import container_lock

_BY_HAND = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER = 0.5  # seconds: a SIGTERM this soon after a first signal was sent along with it


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    standard_files.open_missing()
    from migrator import cli

    for number in (*_BY_HAND, container_lock.ABORT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1), or a background job of a script
            signal.signal(number, _interrupt)
    try:
        result = cli.parse(sys.argv[1:] if argv is None else argv).run()
        if result is not None:
            _print(lambda: cli.show(result))
        return result.status if result is not None else EXIT_OK
    except DocumentedError as error:
        return _report(error)
    except Exception as error:
        return _report(as_ours(error), error)
    finally:
        _drop_unwritten(sys.stderr)


def _report(error: DocumentedError, of: BaseException | None = None) -> int:
    if log.level >= log.Level.DEBUG:
        import traceback

        log.debug("".join(traceback.format_exception(of or error)))
    if log.as_json:
        _print(lambda: print(json.dumps({"error": error.to_json()})))
    log.error(str(error), **({"error": error.to_json()} if log.as_json else {}))
    if error.hint:
        log.cure(error.hint)
    return error.exit_status


def _print(show: Callable[[], None]) -> None:
    """Print to stdout. If that fails, what has been done stays done, and only the exit status shows it."""
    try:
        show()
        sys.stdout.flush()
    except OSError as error:
        _drop_unwritten(sys.stdout)
        if not isinstance(error, BrokenPipeError):  # `migrator status | head` is no failure
            log.warning(f"The result could not be written to stdout: {error.strerror}")


def _drop_unwritten(stream: TextIO) -> None:
    """Discard what cannot be written: at exit Python would try again, and return status 120."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except ValueError:
        pass  # it is closed


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """The first signal stops the work cleanly, undoing what is half done; a second Ctrl-C ends it at once.

    What gives a container back is not stopped by the first: see `container_lock.held_back`. `migrator abort` asks once
    or several times: only the first counts, and none after a signal sent by hand.
    """
    again = partial(_once_more, time.monotonic())
    for each in _BY_HAND:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else again)
    signal.signal(container_lock.ABORT, lambda *_: None)
    by = "migrator abort" if number == container_lock.ABORT else signal.Signals(number).name
    if container_lock.holds():
        log.at_signal(f"Interrupted by {by}: {_what_follows(sys.argv[1:2])}")
    error = Interrupted(signal=by, number=signal.SIGINT if number == container_lock.ABORT else number)
    container_lock.interrupted(error)
    if not container_lock.is_held_back():
        raise error


def _once_more(first: float, number: int, _frame: FrameType | None) -> None:
    """SIGTERM or SIGHUP after the first signal, which came at `first` by time.monotonic().

    Nobody types SIGHUP: a terminal that closes sends it twice, from the shell (SIGNALS in bash(1)) and from the kernel
    once the shell has ended (disassociate_ctty in its tty_jobctrl.c). The end of a session sends it along with SIGTERM
    (SendSIGHUP= in systemd.kill(5)), and timeout(1) sends SIGTERM to its child and to its whole group.
    """
    if number == signal.SIGTERM and time.monotonic() - first > TOGETHER:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _what_follows(command: list[str]) -> str:
    """What a command does now, and what a second Ctrl-C would do."""
    if command in (["migrate"], ["resume"]):
        return ("giving up the attempt, so that the container keeps running here. A second Ctrl-C ends this at once "
                "and leaves the rest to `migrator resume` or `migrator rollback`.")
    return "stopping cleanly. A second Ctrl-C ends this at once."


if __name__ == "__main__":
    sys.exit(main())
