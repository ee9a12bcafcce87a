# SPDX-License-Identifier: GPL-2.0-or-later
"""The mount images of a dump, rewritten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.criu import image_messages
from tests.migrator.criu_images import image, message

FIRST, SECOND = "mountpoints-13.img", "mountpoints-16.img"
IMAGES = {FIRST: image("mounts", message((1, 5))), SECOND: image("mounts", message((1, 6)))}


@pytest.fixture(name="images")
def of_a_dump(tmp_path: Path) -> Path:
    for name, text in IMAGES.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "mountpoints-13.img.old").write_bytes(b"no image of a dump")
    return tmp_path


def test_only_images_that_change_are_written(images: Path) -> None:
    passed: list[dict[str, bytes]] = []

    def change(texts: dict[str, bytes]) -> dict[str, bytes]:
        passed.append(texts)
        return texts | {SECOND: b"another one"}

    os.utime(images / FIRST, ns=(1, 1))
    image_messages.rewrite_mounts(images, change)
    assert passed == [IMAGES]
    assert (images / FIRST).read_bytes() == IMAGES[FIRST] and (images / FIRST).stat().st_mtime_ns == 1
    assert (images / SECOND).read_bytes() == b"another one"


def test_there_may_be_none(tmp_path: Path) -> None:
    image_messages.rewrite_mounts(tmp_path, lambda texts: texts)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_too_large_is_not_read(images: Path) -> None:
    os.truncate(images / SECOND, image_messages.MOUNTS_LIMIT)
    image_messages.rewrite_mounts(images, lambda texts: texts)
    os.truncate(images / SECOND, image_messages.MOUNTS_LIMIT + 1)
    with pytest.raises(ValueError, match="larger"):
        image_messages.rewrite_mounts(images, lambda texts: texts)
