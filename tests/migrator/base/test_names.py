# SPDX-License-Identifier: GPL-2.0-or-later
"""What may become part of a path, and what may not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.base import names
from migrator.errors.containers import InvalidName


@pytest.mark.parametrize("name", ["c1", "web-1.example_org", "0", "A", "x" * 63, "rootfs", "config"])
def test_container_names(name: str) -> None:
    assert names.container_name(name) == name


@pytest.mark.parametrize("name", [
    "", ".", "..", "../x", "/etc", "a/b", "-n", ".hidden", "_x", "a b", "a\n", "a\nb", "a\0", "é", "\uff41", "x" * 64,
    "x" * 300, "$(id)", "a;b", "a'b", "%s",
])
def test_bad_container_names(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        names.container_name(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "63 letters" in caught.value.hint


@given(st.text())
def test_what_passes_stays_in_its_folder(name: str) -> None:
    try:
        path = Path("/pool") / names.container_name(name)
    except InvalidName:
        return
    assert path.resolve().parent == Path("/pool")
    assert name.isascii() and name.isprintable() and not name.startswith("-")


def test_new_ids_are_valid_and_differ() -> None:
    made = {names.new_migration_id() for _ in range(1000)}
    assert len(made) > 990
    for id in made:
        assert names.migration_id(id) == id


REFUSED: list[tuple[Callable[[str], object], list[str]]] = [
    (names.migration_id, ["", "0badc0d", "0badc0de0", "0BADC0DE", "0badc0dg", "0badc0de\n", "../../..", "........"]),
    (names.uuid, ["", "0", "00000000-0000-0000-0000-00000000000", "00000000-0000-0000-0000-0000000000000",
                  "00000000-0000-0000-0000-00000000000G", "00000000000000000000000000000000", "a\n"]),
    (names.interface_name, ["", ".", "..", "eth0/..", "eth 0", "x" * 16, "é" * 8, "br0\n", "a:b", 'a"b', "a\x7f",
                            "\ud800"]),
    (names.inside_interface, ["", ".", "..", "eth0/..", "eth 0", "x" * 16, "é" * 8, "br0\n", "a:b", "a\0", "à",
                              "\ud800"]),
    (names.lxcpath, ["", "pool", "./pool", "/pool/../etc", "/..", "/pool\n", "/pool\0", "/" + "x" * 5000]),
]


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in REFUSED for text in texts])
def test_refused(check: Callable[[str], object], text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check(text)
    assert len(str(caught.value)) < 250


def test_accepted() -> None:
    assert names.uuid("01234567-89ab-cdef-0123-456789abcdef") == "01234567-89ab-cdef-0123-456789abcdef"
    for name in ("br-0.100_x", "_br0", "-x", "a=b", "é0", "x" * 15, "é" * 7):  # all that `ip link add` takes
        assert names.interface_name(name) == names.inside_interface(name) == name
    for name in ('a"b', "a*", "a\x7f", "\x01", "$(x)", "\udcff", "a\u2003b"):  # all that it takes in a container
        assert names.inside_interface(name) == name
    assert names.lxcpath("/var/lib/lxc") == Path("/var/lib/lxc")
    assert names.lxcpath("/srv/my containers") == Path("/srv/my containers")


def test_the_limits_themselves_are_allowed() -> None:
    """And who is over them by one is told by how much."""
    with pytest.raises(InvalidName, match="it has 64 characters"):
        names.container_name("x" * 64)
    longest = "/" + "x" * (names.PATH_MAX - 1)
    assert names.lxcpath(longest) == Path(longest)
    with pytest.raises(InvalidName):
        names.lxcpath(longest + "x")


@pytest.mark.parametrize("name", ["hosta", "host-a.example.org", "0", "x" * 253])
def test_host_names(name: str) -> None:
    assert names.host_name(name) == name


@pytest.mark.parametrize("name", ["", "-o", ".a", "_a", "a b", "a\n", "a/b", "a@b", "a\0", "é", "x" * 254, "\x1b[2J"])
def test_bad_host_names(name: str) -> None:
    with pytest.raises(InvalidName):
        names.host_name(name)


def test_one_folder_by_two_names(tmp_path: Path) -> None:
    here, alias, other = tmp_path / "pool", tmp_path / "alias", tmp_path / "other"
    alias.symlink_to(here)
    assert names.same_path(here, alias), "also where nothing is there yet"
    for each in (here, other):
        each.mkdir()
    assert names.same_path(here, alias) and names.same_path(alias / "..", tmp_path)
    assert not names.same_path(here, other) and not names.same_path(here, here / "nowhere")


def test_a_file_of_a_container_is_called_the_same_by_every_version(tmp_path: Path) -> None:
    """Two of them may run at once after an upgrade, and keep each other off by the name of the lock."""
    assert names.in_path("web", Path("/")) == "web@bf3828289c471d90"
    alias = tmp_path / "alias"
    alias.symlink_to("/")
    assert names.in_path("web", alias) == names.in_path("web", Path("/")) != names.in_path("web", tmp_path)


def test_an_interface_is_cut_in_the_middle_of_a_letter() -> None:
    """As the kernel's limit is one of bytes."""
    assert names.cut_interface("br0") == "br0"
    assert os.fsencode(names.cut_interface("é" * 8)) == ("é" * 8).encode()[:15]
