# SPDX-License-Identifier: GPL-2.0-or-later
"""What is restored has a session keyring of its own."""

from __future__ import annotations

import ctypes
import errno
import platform
import sys

import pytest

from migrator.base.run import run
from migrator.criu import own_keyring
from migrator.host import device_filter

# The serial number of a program's session keyring, as a user of a container's (KEYCTL_GET_KEYRING_ID).
SAYS = """
import ctypes, os, sys
os.setresuid(165536, 165536, 165536) if os.getuid() == 0 else None
print(ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, -3, 0))
"""


def keyring(**how: object) -> int:
    number = str(own_keyring._KEYCTL[platform.machine()])
    return int(run([sys.executable, "-c", SAYS, number], **how).text)  # type: ignore[arg-type]


def test_it_has_not_that_of_who_restores_it() -> None:
    ours, other = keyring(), keyring(within=own_keyring.join)
    if ours == -1:  # no keyrings in this kernel, or the call is kept from all that is here
        assert other == -1
    else:
        assert ours == keyring() != other, "and who has restored it keeps his"


@pytest.mark.parametrize(("number", "raises"), [
    (errno.ENOSYS, False), (errno.EPERM, False), (errno.EDQUOT, True), (errno.EACCES, True)])
def test_where_none_can_be_made(monkeypatch: pytest.MonkeyPatch, number: int, raises: bool) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            self.syscall = lambda *_: -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    if raises:
        with pytest.raises(OSError, match="a session keyring") as failed:
            own_keyring.join()
        assert failed.value.errno == number
    else:
        own_keyring.join()


def test_what_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one without a name: whoever may search one of that name would join it, too (keyctl(2))."""
    asked: list[list[object]] = []

    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            """What is asked for is a C long each."""

        def syscall(self, *given: object) -> int:
            asked.append([getattr(each, "value", each) for each in given])
            return 4711

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    own_keyring.join()
    assert asked == [[250, 1, None]]


def test_the_kernels_word_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no such operation; or it lets nobody here ask for one."""
    monkeypatch.setattr(own_keyring, "_JOIN_SESSION_KEYRING", 1 << 20)
    try:
        own_keyring.join()
    except OSError as failed:
        assert failed.errno == errno.EOPNOTSUPP
    else:
        assert keyring() == -1


def test_an_unknown_machine_restores_nothing_unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "unheard-of")
    with pytest.raises(OSError, match="unheard-of"):
        own_keyring.join()


def test_it_knows_the_machines_that_a_device_filter_knows() -> None:
    """A container is restored with both, or not at all."""
    assert set(own_keyring._KEYCTL) == set(device_filter._SYSCALL)
