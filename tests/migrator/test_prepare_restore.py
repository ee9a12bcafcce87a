# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made ready for CRIU, and what of an earlier attempt goes first."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from migrator import at_restore, layout, lxc, restore, veths
from migrator.layout import Layout


def test_what_an_earlier_attempt_has_said_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are there for another one: that CRIU had let go of what ran then says nothing of what comes."""
    monkeypatch.setattr(layout, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(veths, "remove", lambda _: None)
    here = Layout(tmp_path, "web", "0badc0de")
    here.make_folder()
    here.spool.mkdir()
    here.container.mkdir()
    config = here.container / "config"
    config.write_text(f"lxc.uts.name = web\nlxc.rootfs.path = btrfs:{here.rootfs}\n")
    images = here.image_folders()[0]
    images.mkdir(parents=True)
    for name in (at_restore.REASON, at_restore.LET_GO):
        (images / name).write_text("of an earlier one")
    container = SimpleNamespace(name="web", config_file=config, folder=here.container)
    restore.prepare(cast("lxc.Container", container), here, images, contextlib.nullcontext)
    assert not at_restore.has_let_go(images) and at_restore.reason(images) == ""
    assert restore.Files.of(here).config.exists()
