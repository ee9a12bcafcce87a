"""When compressing pays: a network's rate as it shows while data is sent."""

from __future__ import annotations

import pytest

from migrator.compression import BUFFERED, ZSTD, NetworkRate

SEGMENT = 4 << 20


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
    assert network.is_slow and not network.known, "it is tried where nothing is known"
    network.add(BUFFERED + 1, 1e-6)  # it only fills buffers
    network.add(200, 1)  # a small frame tells nothing
    assert not network.known
    sends(network, rate, 1)
    assert network.known and network.is_slow is slow


def test_it_follows_the_network() -> None:
    network = NetworkRate()
    sends(network, ZSTD * 4, 10)
    assert not network.is_slow
    sends(network, ZSTD / 10, 1)  # it stalls: that counts by its length, not as one of ten
    assert network.is_slow
    sends(network, ZSTD * 4, 30)
    assert not network.is_slow
