"""When compressing pays: a network's rate as it shows while data is sent."""

from __future__ import annotations

import pytest

from migrator.compression import BUFFERED, ZSTD, NetworkRate

SEGMENT = 4 << 20


def shown(network: NetworkRate) -> tuple[bool, bool]:
    """Whether its rate is known, and whether it counts as slow."""
    return network.known, network.is_slow


def sends(network: NetworkRate, rate: float, count: int) -> None:
    for _ in range(count):
        network.add(SEGMENT, SEGMENT / rate)


@pytest.mark.parametrize(("rate", "slow"), [
    (12e6, True),  # 100 Mbit/s
    (117e6, True),  # 1 Gbit/s
    (600e6, False),
])
def test_only_a_slow_network_gets_compressed_data(rate: float, slow: bool) -> None:
    network = NetworkRate()
    assert shown(network) == (False, True), "it is tried where nothing is known"
    network.add(BUFFERED + 1, 1e-6)  # it only fills buffers
    network.add(200, 1)  # a small frame tells nothing
    assert shown(network) == (False, True)
    sends(network, rate, 1)
    assert shown(network) == (True, slow)


def test_it_follows_the_network() -> None:
    network = NetworkRate()
    sends(network, ZSTD * 4, 10)
    assert shown(network) == (True, False)
    sends(network, ZSTD / 10, 1)  # it stalls: that counts by its length, not as one of ten
    assert shown(network) == (True, True)
    sends(network, ZSTD * 4, 30)
    assert shown(network) == (True, False)
