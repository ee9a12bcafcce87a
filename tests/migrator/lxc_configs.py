# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations that include others, and what liblxc makes of them.

`test_config_reader` holds our own reading to this table; tests/rig/test_check_stock.py holds the table to liblxc.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Case:
    """A container's folder. `ROOT` in a text is where it lies; a name that ends with a slash is an empty folder."""

    files: dict[str, str]
    terminals: int | None  # the lxc.tty.max that counts; None: LXC refuses the configuration

    def make(self, folder: Path) -> Path:
        """Write it; returns the path of its configuration."""
        for name, text in self.files.items():
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(text.replace("ROOT", str(folder)).encode())
        return folder / "config"


def _case(terminals: int | None, config: str, **files: str) -> Case:
    """`a__conf` stands for a.conf and `d_a` for d/a."""
    named = {name.replace("__", ".").replace("_", "/"): text for name, text in files.items()}
    return Case({"config": config, **named}, terminals)


CASES = {
    "nothing": _case(0, "lxc.tty.max = 0\n"),
    "a file": _case(3, "lxc.tty.max = 1\nlxc.include = ROOT/a\n", a="lxc.tty.max = 3\n"),
    "a file and what follows it": _case(2, "lxc.include = ROOT/a\nlxc.tty.max = 2\n", a="lxc.tty.max = 3\n"),
    "a file in a file": _case(4, "lxc.include=ROOT/a", a="lxc.include = ROOT/d/b", d_b="lxc.tty.max = 4"),
    "a file twice": _case(3, "lxc.include = ROOT/a\nlxc.include = ROOT/a\n", a="lxc.tty.max = 3\n"),
    "an empty file": _case(1, "lxc.tty.max = 1\nlxc.include = ROOT/a\n", a=""),
    "no file": _case(None, "lxc.include = ROOT/gone\n"),
    "no file in a file": _case(None, "lxc.include = ROOT/a\n", a="lxc.include = ROOT/gone\n"),
    "no folder, with a slash": _case(1, "lxc.tty.max = 1\nlxc.include = ROOT/gone.d/\n"),
    "no folder, with a slash, in a file": _case(2, "lxc.include = ROOT/a\n",
                                               a="lxc.tty.max = 2\nlxc.include = ROOT/gone.d/\n"),
    "no folder, without a slash": _case(None, "lxc.include = ROOT/gone.d\n"),
    "an empty folder": Case({"config": "lxc.tty.max = 1\nlxc.include = ROOT/d/\n", "d/": ""}, 1),
    "an empty folder, without a slash": Case({"config": "lxc.tty.max = 1\nlxc.include = ROOT/d\n", "d/": ""}, 1),
    "a folder": _case(5, "lxc.tty.max = 1\nlxc.include = ROOT/d/\n", d_a__conf="lxc.tty.max = 5\n"),
    "a folder, without a slash": _case(5, "lxc.include = ROOT/d\n", d_a__conf="lxc.tty.max = 5\n"),
    "other files in a folder": Case({"config": "lxc.tty.max = 1\nlxc.include = ROOT/d/\n", "d/a": "nonsense = 2\n",
                                     "d/.conf": "lxc.nonsense = 2\n", "d/b.conf~": "lxc.tty.max = 2\n"}, 1),
    "a hidden file in a folder": Case({"config": "lxc.include = ROOT/d/\n", "d/.a.conf": "lxc.tty.max = 6\n"}, 6),
    "a folder in a folder": Case({"config": "lxc.include = ROOT/d/\n", "d/a.conf/": ""}, 0),
    "a folder from a folder's file": _case(7, "lxc.include = ROOT/d/\n", d_a__conf="lxc.include = ROOT/e/\n",
                                           e_b__conf="lxc.tty.max = 7\n"),
    "a file with a slash": _case(None, "lxc.include = ROOT/a/\n", a="lxc.tty.max = 1\n"),
    "itself": _case(None, "lxc.tty.max = 1\nlxc.include = ROOT/config\n"),
    "in a circle": _case(None, "lxc.include = ROOT/a\n", a="lxc.include = ROOT/d/\n", d_b__conf="lxc.include = ROOT/a"),
    "nothing named": _case(1, "lxc.tty.max = 1\nlxc.include =\n"),
    "in quotes": _case(3, 'lxc.include = "ROOT/a"\n', a="lxc.tty.max = '3'\n"),
    "in half quotes": _case(None, 'lxc.include = "ROOT/a\n', a="lxc.tty.max = 3\n"),
    "with white space": _case(3, "\t lxc.include\t=  ROOT/a \t\n", a=" lxc.tty.max = 3 \n"),
    "a comment": _case(1, "# lxc.include = ROOT/gone\nlxc.tty.max = 1\n  #lxc.include = ROOT/gone\n"),
    "others' keys": _case(1, "include = ROOT/gone\nlxc.tty.max = 1\n"),
    "lines of Windows": _case(3, "lxc.include = ROOT/a\r\nlxc.tty.max = 3\r\n", a="lxc.tty.max = 1\r\n"),
    "odd line ends": _case(3, "lxc.uts.name = a\x0clxc.include = ROOT/gone\rlxc.tty.max = 3\n"),
    "a device": _case(1, "lxc.tty.max = 1\nlxc.include = /dev/null\n"),
    "as Debian ships it": _case(
        1, "lxc.include = ROOT/share/common.conf\nlxc.include = ROOT/share/userns.conf\nlxc.uts.name = web\n",
        share_common__conf="lxc.tty.max = 4\nlxc.include = ROOT/share/common.conf.d/\n",
        share_userns__conf="lxc.tty.max = 1\nlxc.include = ROOT/share/userns.conf.d/\n",
        share_common__conf__d_README="no configuration\n"),
}
