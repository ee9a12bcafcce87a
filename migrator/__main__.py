"""Entry point: signals, the command line, and every exception turned into an exit status in one place."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

from migrator import log
from migrator.errors import EXIT_OK, InternalError, Interrupted
from tunnel.errors import DocumentedError


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    from migrator import cli

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        args = cli.parse(sys.argv[1:] if argv is None else argv)
        result = args.run(args)
        if result is not None:
            cli.show(result)
        sys.stdout.flush()
        return result.status if result is not None else EXIT_OK
    except DocumentedError as error:
        return _report(error)
    except BrokenPipeError:  # `migrator status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        if log.level >= log.Level.DEBUG:
            raise
        return _report(InternalError(reason=f"{type(error).__name__}: {error}"))


def _report(error: DocumentedError) -> int:
    if log.level >= log.Level.DEBUG:
        import traceback

        traceback.print_exception(error)
    if log.as_json:
        print(json.dumps({"error": error.to_json()}))
        sys.stdout.flush()
    log.error(str(error), **({"error": error.to_json()} if log.as_json else {}))
    if error.hint:
        log.cure(error.hint)
    return error.exit_status


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """The first signal stops the work in an orderly way, undoing what is half done; the second ends the program."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    raise Interrupted(signal=signal.Signals(number).name, number=number)


if __name__ == "__main__":
    sys.exit(main())
