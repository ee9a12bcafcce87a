# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that LXC lists clones in may be anything by now: it is neither waited for nor read without an end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.record import clones

ASK = """
import resource, sys
from pathlib import Path
from migrator.record import clones
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
print(clones.lie_on(Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("what", "some"), [
    ("no file", False), ("a link to nothing", False), ("a file", True), ("an empty file", False), ("a folder", True),
    ("a FIFO", True), ("what has no end", True), ("what is too large", True)])
def test_whatever_is_there(tmp_path: Path, what: str, some: bool) -> None:
    """What cannot be told counts as some."""
    listed = tmp_path / clones.LIST
    if what == "a FIFO":
        os.mkfifo(listed)
    elif what == "a folder":
        listed.mkdir()
    elif what in ("a link to nothing", "what has no end"):
        listed.symlink_to(tmp_path / "nothing" if what == "a link to nothing" else "/dev/zero")
    elif what != "no file":
        listed.write_text("" if what == "an empty file" else "/var/lib/lxc\nclone\n")
    if what == "what is too large":
        os.truncate(listed, 1 << 40)
    done = subprocess.run([sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.stdout.strip() == str(some), done.stderr
