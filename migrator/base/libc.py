# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that Python does not wrap, called through the C library."""

from __future__ import annotations

import ctypes
import os


def library() -> ctypes.CDLL:
    """The C library, whose functions report errors to `must`."""
    return ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str | None = None) -> int:
    """The result of a call; raises OSError if it failed, with `what` it was about in place of a file name."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result
