# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's image of a container's cgroups, and what is taken out of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from migrator.criu import cgroup_image
from tests.migrator.cgroup_images import HEAD, image, prop


def test_controllers_are_left_out_everywhere() -> None:
    assert cgroup_image.without_controllers(image(prop("cgroup.subtree_control", "memory pids"))) == image()


def test_all_else_is_as_it_was() -> None:
    for other in (image(), image(prop("cgroup.type", "cgroup.subtree_control")), b"", b"another image", HEAD):
        assert cgroup_image.without_controllers(other) == other


def test_an_image_that_makes_no_sense() -> None:
    whole = image(prop("cgroup.subtree_control", "memory"))
    for end in (9, 11, 12 + 1):
        with pytest.raises(ValueError, match="damaged"):
            cgroup_image.without_controllers(whole[:end])


def test_the_file(tmp_path: Path) -> None:
    cgroup_image.leave_controllers(tmp_path)
    path = tmp_path / cgroup_image.IMAGE
    path.write_bytes(image(prop("cgroup.subtree_control", "")))
    cgroup_image.leave_controllers(tmp_path)
    assert path.read_bytes() == image()


CALLS = [(os, "open"), (os, "fchown"), (os, "fchmod"), (os, "link"), (Path, "unlink"), (Path, "replace")]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", CALLS, ids=[name for _, name in CALLS])
def test_killed_while_it_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str],
                                      after: bool) -> None:
    """At each point the image is there, and what has arrived comes back."""
    path, arrived = tmp_path / cgroup_image.IMAGE, image(prop("cgroup.subtree_control", "memory"))
    path.write_bytes(arrived)
    path.chmod(0o640)
    real = getattr(*call)
    for step in (cgroup_image.leave_controllers, cgroup_image.put_back, cgroup_image.leave_controllers):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            def killed(*words: object, **more: object) -> None:
                if after:
                    real(*words, **more)
                raise KeyboardInterrupt

            patch.setattr(*call, killed)
            step(tmp_path)
        assert path.read_bytes() in (arrived, image())
    cgroup_image.put_back(tmp_path)
    assert path.read_bytes() == arrived and not (tmp_path / cgroup_image.ARRIVED).exists()
    cgroup_image.leave_controllers(tmp_path)
    assert path.read_bytes() == image() and path.stat().st_mode & 0o777 == 0o640
