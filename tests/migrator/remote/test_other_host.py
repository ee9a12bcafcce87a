# SPDX-License-Identifier: GPL-2.0-or-later
"""How a connection ends takes the place of nothing that has come of what was asked over it."""


from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from migrator.errors import Interrupted
from migrator.errors.containers import OutOfOrder
from migrator.record import container_lock
from migrator.remote import other_host
from migrator.remote.destination import ConnectOptions
from migrator.remote.tunnelled import PATIENCE
from tests.stages.key_presses import handlers, press  # noqa: F401 -- a fixture
from tunnel.tunnel_errors import LeftoversRemain

ERROR = OutOfOrder(stage="finish", missing="it is not there", next="migrator status web")


class Greeted:
    """A connection of which nothing is wrong but its end."""

    timeout, first = 0.0, 0.0  # what the last one was made with

    def __init__(self, _: object, *, timeout: float, **__: object) -> None:
        Greeted.timeout = timeout

    def hello(self, first: float) -> None:
        Greeted.first = first

    def close(self) -> None: ...


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], Any]:
    """A connection whose end does this."""
    monkeypatch.setattr(other_host, "Connection", Greeted)

    def connected(end: Callable[[], None], timeout: float = 15, where: str = "root@hostb",
                  limit: float | None = None) -> Any:
        monkeypatch.setattr(other_host, "_stream", lambda _options, _target, stack, _limit: (stack.callback(end), None))
        return other_host.connected(ConnectOptions(timeout), where, limit)

    return connected


def remain() -> None:
    raise LeftoversRemain(what="firewall table mig-00010203 (nft: Device or resource busy)")


@pytest.mark.parametrize("error", [None, ERROR])
def test_what_is_left_of_a_tunnel_is_told(ends: Callable[..., Any], capfd: pytest.CaptureFixture[str],
                                          error: Exception | None) -> None:
    with contextlib.nullcontext() if error is None else pytest.raises(OutOfOrder), ends(remain):
        if error:
            raise error
    assert "did not end cleanly: Leftovers of an earlier tunnel" in capfd.readouterr().err


def test_ctrl_c_takes_the_place_of_no_error(ends: Callable[..., Any]) -> None:
    with pytest.raises(OutOfOrder), ends(press):
        raise ERROR
    with pytest.raises(Interrupted):
        container_lock.check_interrupted()


def test_ctrl_c_waits_until_all_of_it_has_ended(ends: Callable[..., Any]) -> None:
    done = []

    def end() -> None:
        press()
        done.append("the tunnel is away")

    with pytest.raises(Interrupted), ends(end):
        done.append("answered")
    assert done == ["answered", "the tunnel is away"]


@pytest.mark.parametrize(("where", "timeout", "limit", "silence", "first"), [
    ("hostb", 15, None, 15, other_host.START_LIMIT), ("hostb", 90, None, 90, 90), ("hostb", 15, 3, 15, 15),
    ("peer:hostb", 15, None, PATIENCE, PATIENCE), ("peer:hostb", 15, 3, PATIENCE, PATIENCE),
])
def test_a_program_that_is_started_there_gets_time_for_it(
        ends: Callable[..., Any], where: str, timeout: float, limit: float | None, silence: float,
        first: float) -> None:
    """Not with a limit, as a container stands still then."""
    with ends(lambda: None, timeout, where, limit):
        assert (Greeted.timeout, Greeted.first) == (silence, first)
