# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes sure that standard input, output and error are open, however the program was started (`2>&-`, for example).

For closed ones Python has None, and the next file opened gets the number of one of them: what a program then writes to
its standard error would end up in a journal, or on a disk.
"""

from __future__ import annotations

import contextlib
import os
import sys


def open_missing() -> None:
    """Open /dev/null on whichever of the three is closed, for this program and those that it starts."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        with contextlib.suppress(OSError):  # a host without /dev/null has bigger problems
            _open(number)
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace",  # noqa: SIM115
                                        closefd=False))


def _open(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd == number:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, number)
            os.close(fd)
