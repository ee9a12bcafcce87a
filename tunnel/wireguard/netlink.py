# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyroute2 requires of its callers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function that uses pyroute2 be called from anywhere.

    pyroute2 runs an event loop of its own, which a thread that runs one already cannot do: it gets another thread then.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return function(*args, **kwargs)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args, **kwargs).result()

    return called


def said(error: Exception) -> str:
    """What the kernel said, of a NetlinkError or OSError."""
    return str(error.args[-1]) if error.args else type(error).__name__
