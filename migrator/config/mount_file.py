# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of mounts that `lxc.mount.fstab` names: its lines travel as lines of `lxc.mount.entry`.

LXC before 2.1 made one in each container's directory (`lxc.mount`), and lxc-update-config kept it. The destination has
no such file, or another container's, and LXC does not start a container whose file it cannot read. To LXC the two kinds
are equivalent: it writes the entries into a file, and reads that as it has read this one before (setup_mount_fstab and
setup_mount_entries in liblxc's conf.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from migrator.config import config_reader

KEY = "lxc.mount.fstab"
ENTRY = "lxc.mount.entry"


def named(settings: Iterable[tuple[str, str]]) -> str:
    """The file that a configuration names, "" for none; the last one counts."""
    return ([""] + [value for key, value in settings if key == KEY and value])[-1]


def lines(text: str) -> list[str]:
    """The mounts in such a file, without its comments (getmntent(3))."""
    found = (line.strip(" \t") for line in config_reader.lines(text))
    return [line for line in found if line and not line.startswith("#")]


def inlined(text: str, path: str, read_file: Callable[[str], str] = config_reader.read_file,
            list_folder: Callable[[str], list[str] | None] = config_reader.list_folder) -> str:
    """The own text of the configuration `path`, with the lines of that file inserted.

    Before all other mounts, because LXC does them first; but after a line that cancels entries. If the file cannot be
    read, or an included file names one that the destination may have, it stays as it is: see `fstab-missing`.
    """
    own = [value for key, value in config_reader.settings(text) if key == KEY and value]
    if not own:
        return text
    found = config_reader.read(path, text, read_file, list_folder).settings
    if sum(key == KEY and bool(value) for key, value in found) > len(own) or not own[-1].startswith("/"):
        return text
    try:
        mounts = [f"{ENTRY} = {line}" for line in lines(read_file(own[-1]))]
    except (OSError, ValueError):
        return text
    others = [line for line in config_reader.lines(text.removesuffix("\n"))
              if (config_reader.setting(line) or ("", ""))[0] != KEY]
    last = (ENTRY, "") in found
    return "".join(f"{line}\n" for line in ([*others, *mounts] if last else [*mounts, *others]))
