# SPDX-License-Identifier: GPL-2.0-or-later
"""What quotas of btrfs limit a root file system to: nobody else could tell, once it is a copy elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.host import btrfs
from migrator.preflight.facts import container_facts

# btrfs-progs 6.2; newer ones call the columns the same.
SAID = """\
Qgroupid    Referenced    Exclusive  Max referenced  Max exclusive   Path
--------    ----------    ---------  --------------  -------------   ----
0/256            16384        16384        10485760        5242880   rootfs
0/257            16384        16384            none           none   rootfs of another
1/7              16384        16384            none       20971520   <0 member qgroups>
1/8              16384        16384               0           none
"""
OFF = "echo \"ERROR: can't list qgroups: quotas not enabled\" >&2; exit 1"


@pytest.mark.parametrize(("does", "found"), [
    (f"cat <<'END'\n{SAID}END", [("0/256", 10 << 20, 5 << 20), ("1/7", -1, 20 << 20), ("1/8", 0, -1)]),
    (OFF, []), ("true", []),
])
def test_what_limits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str,
                        found: list[tuple[str, int, int]]) -> None:
    program = tmp_path / "btrfs"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'qgroup show -reF --raw {tmp_path}' ] || exit 2\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert btrfs.quota(tmp_path) == found


@pytest.mark.parametrize("full", [True, False])
def test_it_is_asked_for_while_the_container_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """And not right before the freeze."""
    monkeypatch.setattr(container_facts, "filesystem", lambda _: "btrfs")
    monkeypatch.setattr(btrfs, "is_subvolume", lambda _: True)
    monkeypatch.setattr(btrfs, "nested", lambda _: [])
    monkeypatch.setattr(btrfs, "quota", lambda _: [("0/256", 1, -1)])
    assert container_facts.look_at_rootfs(tmp_path, full=full).quota == ((("0/256", 1, -1),) if full else ())
