# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination keeps for the next attempt is whole after a power cut. Needs root, but not the two hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.equipment import TREE
from tests.rig.power_cut import ID


@pytest.mark.parametrize(("case", "kept"), [
    ("at_import", []), ("after_rootfs", [f"{ID}.2"]),
    *(pytest.param(case, [f"{ID}.1"], marks=pytest.mark.nightly)
      for case in ("at_handover", "before_rootfs", "after_import")),
])
def test_what_is_kept_is_on_disk(tmp_path: Path, case: str, kept: list[str]) -> None:
    """The rig's hosts cannot show that: their reboot keeps what is in the memory of the kernel, which is the same."""
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", sys.executable, "-m",
                           "tests.rig.power_cut", tmp_path, case], cwd=TREE, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"kept": kept, "wrong": 0}
