# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminals of LXC's in the mount namespaces of services, in CRIU's images."""

from __future__ import annotations

import pytest

from migrator.criu import terminal_mounts
from tests.migrator.criu_images import image, message

DEVPTS, TMPFS = 6, 5
OWN, SERVICE = "mountpoints-13.img", "mountpoints-18.img"


def mount(id_: int, root: str, target: str, key: str = "", type_: int = DEVPTS, device: int = 0x7A) -> bytes:
    """A mnt_entry, with a field in it that nothing here knows."""
    entry: list[tuple[int, int | bytes | str]] = [
        (1, type_), (2, id_), (3, device), (4, 87), (5, 0x200000), (6, root), (7, f".{target}"), (8, "devpts"),
        (9, "gid=100005"), (10, id_), (99, b"later"), *([(18, key)] if key else [])]
    return message(*entry)


def images(**named: list[bytes]) -> dict[str, bytes]:
    return {{"own": OWN, "service": SERVICE}[name]: image("mounts", *mounts) for name, mounts in named.items()}


def test_each_lies_on_a_file_system_of_its_own() -> None:
    """So that CRIU binds it from the external one; /dev/pts stays where it was, and so does everything else."""
    before = images(own=[mount(104, "/", "/dev/pts"), mount(106, "/0", "/dev/console", "console"),
                         mount(107, "/1", "/dev/tty1", "dev/tty1"), mount(73, "/", "/run", type_=TMPFS, device=0x7C)],
                    service=[mount(363, "/", "/dev/pts"), mount(365, "/0", "/dev/console"),
                             mount(366, "/1", "/dev/tty1"), mount(364, "/ptmx", "/dev/ptmx")])
    assert terminal_mounts.separated(before) == images(
        own=[mount(104, "/", "/dev/pts"), mount(106, "/0", "/dev/console", "console", device=0xFFF00000),
             mount(107, "/1", "/dev/tty1", "dev/tty1", device=0xFFF00001),
             mount(73, "/", "/run", type_=TMPFS, device=0x7C)],
        service=[mount(363, "/", "/dev/pts"), mount(365, "/0", "/dev/console", device=0xFFF00000),
                 mount(366, "/1", "/dev/tty1", device=0xFFF00001), mount(364, "/ptmx", "/dev/ptmx")])


def test_none_that_is_taken() -> None:
    before = images(own=[mount(106, "/0", "/dev/console", "console"), mount(110, "/5", "/x", device=0xFFF00000)],
                    service=[mount(365, "/0", "/dev/console")])
    after = terminal_mounts.separated(before)
    assert after[SERVICE] == image("mounts", mount(365, "/0", "/dev/console", device=0xFFF00001))


@pytest.mark.parametrize("service", [
    [], [mount(365, "/1", "/dev/console")], [mount(365, "/0", "/dev/console", type_=TMPFS)],
    [mount(365, "/0", "/dev/console", device=0x7B)], [mount(365, "/ptmx", "/dev/ptmx")],
])
def test_there_is_nothing_to_do(service: list[bytes]) -> None:
    before = images(own=[mount(106, "/0", "/dev/console", "console"), mount(107, "/ptmx", "/dev/x", "x")],
                    service=service)
    assert terminal_mounts.separated(before) == before


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{OWN} is not a CRIU image"):
        terminal_mounts.separated(images(service=[mount(365, "/0", "/dev/console")]) | {OWN: b"something else"})


def test_an_image_of_other_mounts_stays() -> None:
    third = {"mountpoints-20.img": image("mounts", mount(500, "/", "/", type_=TMPFS))}
    named = images(own=[mount(106, "/0", "/dev/console", "console")], service=[mount(365, "/0", "/dev/console")])
    assert terminal_mounts.separated(named | third) == terminal_mounts.separated(named) | third
