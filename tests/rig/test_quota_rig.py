# SPDX-License-Identifier: GPL-2.0-or-later
"""What btrfs itself says of a quota. Needs root, but not the two hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

from migrator.host import btrfs
from migrator.preflight.facts import container_facts

MIB = 1 << 20


def test_a_quota_is_a_fact(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    rootfs = pool / "rootfs"

    def does(*words: object) -> None:
        subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True)

    pool.mkdir()
    with (tmp_path / "image").open("wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", tmp_path / "image"], check=True, capture_output=True)
    subprocess.run(["mount", "-t", "btrfs", "-o", "loop", tmp_path / "image", pool], check=True)
    try:
        does("subvolume", "create", rootfs)
        assert btrfs.quota(rootfs) == [], "quotas are off"
        does("quota", "enable", pool)
        assert btrfs.quota(rootfs) == []
        own = f"0/{btrfs.id_of(rootfs)}"
        does("qgroup", "create", "1/7", pool)
        does("qgroup", "assign", own, "1/7", pool)
        does("qgroup", "limit", "10M", rootfs)
        does("qgroup", "limit", "-e", "5M", rootfs)
        does("qgroup", "limit", "20M", "1/7", pool)
        assert container_facts.look_at_rootfs(rootfs, full=True).quota == (
            (own, 10 * MIB, 5 * MIB), ("1/7", 20 * MIB, -1))
    finally:
        subprocess.run(["umount", pool], check=True)
