# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls through the C library."""

from __future__ import annotations

import errno
import os

import pytest

from migrator.base import libc


def test_a_result_is_passed_on() -> None:
    assert libc.must(libc.library().getpid()) == os.getpid()


@pytest.mark.parametrize("what", ["what it was about", None])
def test_a_call_that_fails(what: str | None) -> None:
    with pytest.raises(OSError) as failed:
        libc.must(libc.library().close(-1), what)
    assert (failed.value.errno, failed.value.filename) == (errno.EBADF, what)
    assert failed.value.strerror == os.strerror(errno.EBADF)
