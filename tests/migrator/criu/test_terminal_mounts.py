# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminals of LXC's in the mount namespaces of services, in CRIU's images."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.criu import image_messages, terminal_mounts
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


def test_only_images_that_change_are_written(tmp_path: Path) -> None:
    image_messages.rewrite_mounts(tmp_path, terminal_mounts.separated)
    third = image("mounts", mount(500, "/", "/", type_=TMPFS))
    named = images(own=[mount(106, "/0", "/dev/console", "console")], service=[mount(365, "/0", "/dev/console")])
    for name, data in (named | {"mountpoints-20.img": third}).items():
        (tmp_path / name).write_bytes(data)
    written = (tmp_path / "mountpoints-20.img").stat().st_mtime_ns
    image_messages.rewrite_mounts(tmp_path, terminal_mounts.separated)
    assert (tmp_path / SERVICE).read_bytes() == terminal_mounts.separated(named)[SERVICE] != named[SERVICE]
    assert (tmp_path / "mountpoints-20.img").stat().st_mtime_ns == written
    (tmp_path / OWN).write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a CRIU image"):
        image_messages.rewrite_mounts(tmp_path, terminal_mounts.separated)
