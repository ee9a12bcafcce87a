# SPDX-License-Identifier: GPL-2.0-or-later
"""How good a path is, the first answer through it, and its MTU, by a clock that is part of the network."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from migrator.base.clock import now
from tests.tunnel.between import Between
from tests.tunnel.clock import pass_time, simulated
from tunnel.health import path_health
from tunnel.health.echo import UDP_HEADERS
from tunnel.health.path_health import Quality, measure, quality, stable
from tunnel.interface import mtu
from tunnel.interface.device import Interface
from tunnel.tunnel_errors import TunnelSilent
from tunnel.wireguard.common import Stats

# --- Quality ---


def test_quality_of_round_trips() -> None:
    assert quality([]) == Quality(None, 0.0, 0.0)
    assert quality([None, None]) == Quality(None, 1.0, 0.0, None, 2)
    found = quality([0.010, 0.030, None, 0.020], 5.0)
    assert found.rtt_ms == pytest.approx(20.0) and found.jitter == pytest.approx(15.0)
    assert (found.loss, found.mbit_s, found.echoes) == (0.25, 5.0, 4)
    assert found.to_json()["rtt_ms"] == found.rtt_ms


@pytest.mark.parametrize(("found", "good", "reason"), [
    (Quality(20.0, 0.0, 1.0, 90.0, 20), True, "round trip 20.0 ms, loss 0%, 90 Mbit/s"),
    (Quality(20.0, 0.0, 1.0, None, 20), True, "round trip 20.0 ms, loss 0%"),
    (Quality(20.0, 0.05, 1.0, None, 20), True, "round trip 20.0 ms, loss 5%"),
    (Quality(None, 1.0, 0.0, None, 20), False, "none of 20 echoes came back"),
    (Quality(20.0, 0.10, 1.0, 90.0, 20), False, "10% of 20 echoes were lost, at most 5% may be"),
    (Quality(1500.0, 0.0, 1.0, 90.0, 20), False, "a round trip takes 1500 ms, 1000 ms is the most"),
    (Quality(20.0, 0.0, 150.0, 90.0, 20), False, "round trips differ by 150 ms, 100 ms is the most"),
    (Quality(20.0, 0.0, 1.0, 0.25, 20), False, "it carries 0.25 Mbit/s, 1 is the least"),
])  # fmt: skip
def test_stable(found: Quality, good: bool, reason: str) -> None:
    assert stable(found) == (good, reason)


@simulated
async def test_measuring_a_good_path() -> None:
    between, begun = Between(), now()
    between.narrow(100, room=1.0)
    found = await measure(between.echoes[0])
    assert found.rtt_ms == pytest.approx(16 * 8 / 100e3, abs=0.1) and found.jitter < 0.1
    assert (found.loss, found.echoes) == (0.0, path_health.ECHOES)
    assert found.mbit_s == pytest.approx(100, rel=0.01)
    assert stable(found)[0]
    assert now() - begun < 1.0, "that is what is promised"


@simulated
async def test_measuring_a_path_that_loses() -> None:
    between = Between()
    one, _ = between.echoes
    count = 0

    def every_fourth(size: int, side: int) -> float | None:
        nonlocal count
        count += side == 0
        return None if side == 0 and count % 4 == 0 else 0.0

    between.rule = every_fourth
    found = await measure(one, timeout=0.2, throughput=False)
    assert found.loss == pytest.approx(0.25)
    assert not stable(found)[0]
    between.cut()
    found = await measure(one, timeout=0.2)
    assert (found.rtt_ms, found.loss, found.mbit_s) == (None, 1.0, None)


@simulated
async def test_the_rate_of_a_narrow_path() -> None:
    between = Between()
    between.narrow(20, room=0.1)
    assert await path_health.rate(between.echoes[0]) == pytest.approx(20, rel=0.02)
    between.rule = lambda size, side: None if size > 100 else 0.0
    assert await path_health.rate(between.echoes[0]) is None


# --- The tunnel as a whole ---


@dataclasses.dataclass
class FakeInterface:
    """What health needs of an interface."""

    name: str = "mig-00010203"
    mtu: int = mtu.MAX
    shaking: bool = True
    kind: str = "userspace"
    role: str = "initiator"

    @property
    def backend(self) -> FakeInterface:
        return self

    async def stats(self) -> Stats:
        return Stats(float(self.shaking), 0, 0, None)

    async def shaken(self, limit: float) -> bool:
        await asyncio.sleep(0.0 if self.shaking else limit)
        return self.shaking

    async def set_mtu(self, size: int) -> None:
        self.mtu = size


def fake(**settings: Any) -> Interface:
    return cast(Interface, FakeInterface(**settings))


@simulated
async def test_the_first_answer() -> None:
    between = Between()
    one, _ = between.echoes
    between.cut()
    asyncio.get_running_loop().call_later(0.2, setattr, between, "rule", lambda size, side: 0.01)
    begun = now()
    assert await path_health.first_answer(fake(), one) == pytest.approx(0.02, abs=1e-4)
    assert now() - begun == pytest.approx(0.22, abs=0.05), "it asks often"
    between.cut()
    with pytest.raises(TunnelSilent, match="handshake succeeded, but no echo"):
        await path_health.first_answer(fake(), one, limit=0.1)
    with pytest.raises(TunnelSilent, match="no WireGuard handshake"):
        await path_health.first_answer(fake(shaking=False), one, limit=0.1)
    with pytest.raises(TunnelSilent, match="no WireGuard handshake"):
        await path_health.first_answer(fake(shaking=False, role="responder"), one, limit=0.2)


@pytest.mark.parametrize(("most", "found"), [(9000, 1420), (1412, 1408), (1399, 1392), (1300, 1296), (1200, 1280)])
@simulated
async def test_the_mtu_of_a_path_that_swallows_what_is_too_big(most: int, found: int) -> None:
    between = Between()
    one, _ = between.echoes
    between.rule = lambda size, side: 0.0 if size + UDP_HEADERS <= most else None
    interface = fake()
    assert await path_health.tune(interface, one, ("127.0.0.1", 9)) == found == interface.mtu


@pytest.mark.parametrize("when", ["sending", "waiting"])
@simulated
async def test_the_mtu_when_this_process_is_held_up(when: str) -> None:
    """For longer than large echoes are waited for: what came back meanwhile counts."""
    between = Between()
    held_up: list[int] = []

    def hold_up(size: int, side: int) -> float:
        if size > 100 and not held_up:
            held_up.append(size)
            if when == "sending":
                pass_time(1.5)
            else:
                asyncio.get_running_loop().call_later(0.02, pass_time, 1.5)
        return 0.03

    between.rule = hold_up
    assert await path_health.tune(fake(mtu=1280), between.echoes[0], ("127.0.0.1", 9)) == mtu.MAX
    assert held_up


@simulated
async def test_the_mtu_of_a_path_that_loses_now_and_then() -> None:
    between = Between()
    one, _ = between.echoes
    seen: dict[int, int] = {}

    def first_is_lost(size: int, side: int) -> float | None:
        seen[size] = seen.get(size, 0) + 1
        return None if seen[size] == 1 and size > 100 else 0.0

    between.rule = first_is_lost
    assert await path_health.tune(fake(mtu=1280), one, ("127.0.0.1", 9)) == mtu.MAX
