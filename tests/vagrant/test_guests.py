# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is refused for, and the data that guests are filled with."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest
from riglib import guests
from riglib.errors import RigError
from riglib.guests import Guest, check, network_lines

from harness.rig import VAGRANT


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "a\nb", "-a", ".a", "ü", "a" * 65])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(RigError, match="no name for a container"):
        check(Guest("hosta", name, "tick"))


@pytest.mark.parametrize("name", ["a", "c1", "web-1.example_org", "9lives", "a" * 64])
def test_names_that_are_taken(name: str) -> None:
    check(Guest("hosta", name, "tick"))


@pytest.mark.parametrize(
    ("guest", "said"),
    [
        (Guest("client", "c1", "tick"), "client runs no containers"),
        (Guest("hosta", "c1", "redis"), "needs an address"),
        (Guest("hosta", "c1", "tick", address="10.0.3"), "no IPv4 address"),
        (Guest("hosta", "c1", "tick", address="10.0.3.1/24"), "no IPv4 address"),
    ],
)
def test_guests_that_are_refused(guest: Guest, said: str) -> None:
    with pytest.raises(RigError, match=said):
        check(guest)


def test_systemd_needs_a_user_namespace_where_limits_cannot_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "may_raise_limits", lambda guest: False)
    check(Guest("hosta", "c1", "systemd", unprivileged=True))
    with pytest.raises(RigError, match="CAP_SYS_RESOURCE"):
        check(Guest("hosta", "c1", "systemd"))
    monkeypatch.setattr(guests, "may_raise_limits", lambda guest: True)
    check(Guest("hosta", "c1", "systemd"))


def test_a_guest_keeps_its_mac() -> None:
    lines = network_lines(Guest("hosta", "c1", "tick", address="10.0.3.50"))
    assert lines == network_lines(Guest("hostb", "c1", "tick", address="10.0.3.50"))
    assert lines != network_lines(Guest("hosta", "c2", "tick", address="10.0.3.50"))
    assert network_lines(Guest("hosta", "c1", "tick")) == ["lxc.net.0.type = empty"]


def guest_module(name: str) -> ModuleType:
    """A program of vagrant/guests, which lie side by side in the hosts."""
    sys.path.insert(0, str(VAGRANT / "guests"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_redis_values_follow_from_their_number() -> None:
    data = guest_module("redis_data")
    assert data.value(7) == data.value(7) != data.value(8)
    for number in range(50):
        assert len(data.value(number)) == data.VALUE
        assert json.loads(data.value(number).rstrip("-"))["user"] == number


def test_redis_commands_on_the_wire() -> None:
    assert guest_module("resp").encode("SET", "k", 12) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n12\r\n"


def test_damaged_pages_are_noticed() -> None:
    pages = guest_module("memory").Pages(1)
    assert all(pages.good(page) for page in range(pages.number))
    pages.memory[5 * 4096] ^= 1
    assert [page for page in range(pages.number) if not pages.good(page)] == [5]
    pages.write(5)
    assert pages.good(5)
