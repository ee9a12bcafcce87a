# SPDX-License-Identifier: GPL-2.0-or-later
"""A container whose configuration is a link: to where the administrator keeps it, or where somebody else wants it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from migrator.config import container_config

ID = "0badc0de"
TEXT = "lxc.uts.name = web\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web" / "rootfs").mkdir(parents=True)
    (tmp_path / "managed").mkdir(mode=0o755)
    (tmp_path / "managed" / "web.conf").write_text(TEXT)
    (tmp_path / "managed" / "web.conf").chmod(0o640)
    return tmp_path / "web"


def fenced(folder: Path) -> None:
    container_config.fence(folder, container_config.text_of(folder / "config"), ID, "no")


@pytest.mark.parametrize("hops", [1, 2])
def test_the_administrators_link_stays(folder: Path, hops: int) -> None:
    real = folder.parent / "managed" / "web.conf"
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    before = real.stat()
    if hops == 2:
        (folder.parent / "managed" / "current").symlink_to("web.conf")
    (folder / "config").symlink_to(f"../managed/{'current' if hops == 2 else 'web.conf'}")
    fenced(folder)
    assert (folder / "config").is_symlink() and container_config.fence_of(real.read_text()) == ID
    container_config.unfence(folder, ID)
    assert (folder / "config").is_symlink() and real.read_text() == TEXT
    after = real.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    left = {path.name for path in (folder.parent / "managed").iterdir()} - {"current"}
    assert left == {"web.conf"}


@pytest.mark.parametrize("how", ["planted", "planted behind", "writable", "dangling", "in a circle", "somebody else's"])
def test_no_other_link_leads_out(folder: Path, how: str) -> None:
    """Its place is taken by a file, and what it leads to is left as it is."""
    victim = folder.parent / "managed" / "web.conf"
    if os.geteuid() == 0:
        os.chown(victim, 12, 34)
    link = folder / "config"
    if how == "planted":  # by the container's root
        (folder / "rootfs" / "config").symlink_to(victim)
        link.symlink_to("rootfs/config")
    elif how == "planted behind":
        (folder / "rootfs" / "etc").symlink_to(folder.parent / "managed")
        link.symlink_to("rootfs/etc/../inside.conf")
        (folder.parent / "inside.conf").write_text(TEXT)
        folder.parent.chmod(0o777)
    elif how == "writable":
        victim.parent.chmod(0o777)
        link.symlink_to(victim)
    elif how == "somebody else's":
        link.symlink_to(victim)
        if os.geteuid():
            return
        os.lchown(link, 12, 34)
    else:
        link.symlink_to("gone" if how == "dangling" else "config")
    container_config.fence(folder, TEXT, ID, "no")
    assert not link.is_symlink() and link.stat().st_uid == os.geteuid()
    assert container_config.fence_of(link.read_text()) == ID
    assert victim.read_text() == TEXT and stat.S_IMODE(victim.stat().st_mode) == 0o640


def test_the_owner_of_a_file_stays(folder: Path) -> None:
    (folder / "config").write_text(TEXT)
    if os.geteuid() == 0:
        os.chown(folder / "config", 12, 34)
    before = (folder / "config").stat()
    fenced(folder)
    after = (folder / "config").stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
