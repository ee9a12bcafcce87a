# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether clones of LXC's are overlays on a container's root file system (`lxc-copy -s`): it must stay under them.

LXC lists them in the container's folder, and does not destroy it while there are any (mod_rdep and has_fs_snapshots in
liblxc's lxccontainer.c).
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from migrator.config import config_reader
from migrator.errors.containers import HasClones
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host

LIST = "lxc_snapshots"  # two lines for each, its LXC path and its name; of older versions of LXC's their number alone


def lie_on(folder: Path) -> bool:
    """Whether there are any on the root file system of the container in this folder; so too if that cannot be told."""
    listed = folder / LIST
    try:
        if not stat.S_ISREG(listed.stat().st_mode):  # what has no end, or waits for a writer, is not read
            return True
        text = config_reader.read_file(str(listed))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    number = re.match(r"\s*[+-]?\d+", text)
    return int(number[0]) != 0 if number else bool(text)


def refuse(layout: Layout) -> None:
    """Raises HasClones where nothing may take the place of the root file system: no overlay follows it elsewhere."""
    if lie_on(layout.container):
        raise HasClones(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath, list=layout.container / LIST)
