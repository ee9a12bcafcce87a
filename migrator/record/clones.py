# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether LXC clones are overlays on a container's root file system (`lxc-copy -s`), which must then stay where it is.

LXC lists such clones in the container's directory, and refuses to destroy it while there are any (mod_rdep and
has_fs_snapshots in liblxc's lxccontainer.c).
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from migrator.config import config_reader
from migrator.errors.containers import HasClones
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host

LIST = "lxc_snapshots"  # two lines a clone, its LXC path and its name; with older versions of LXC just their number


def lie_on(folder: Path) -> bool:
    """Whether there are any on the root file system of the container in this directory; True if that cannot be told."""
    listed = folder / LIST
    try:
        if not stat.S_ISREG(listed.stat().st_mode):  # do not read what never ends or waits for a writer
            return True
        text = config_reader.read_file(str(listed))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    number = re.match(r"\s*[+-]?\d+", text)
    return int(number[0]) != 0 if number else bool(text)


def refuse(layout: Layout) -> None:
    """Raise HasClones if nothing may take the root file system's place, because no overlay would follow it elsewhere.
    """
    if lie_on(layout.container):
        raise HasClones(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath, list=layout.container / LIST)
