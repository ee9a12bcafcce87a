# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a fence that was written into a configuration still holds: it is text, and someone may have changed it since.
"""

from __future__ import annotations

import re
from pathlib import Path

from migrator.config import config_reader, container_config

_QUOTED = r"'(?:[^']|'\\'')*'"
# Hooks that `fence` has written since the first version: some let a restore of their own pass.
_HOOK = re.compile(
    r"#!/bin/sh\n# lxc\.hook\.pre-start, see migrator\(1\)\n"
    r'(?:\[ "\$MIGRATOR_RESTORES" != [0-9a-f]{8} \] \|\| exit 0\n)?'
    rf"printf '%s\\n' {_QUOTED}"
    rf"(?: \| tee /dev/stderr|\nprintf '%s\\n' {_QUOTED} 2>/dev/null >>?/proc/\$PPID/fd/2)\nexit 1\n?")


def is_whole(text: str, migration: str) -> bool:
    """Whether this configuration has the fence of `migration` as written by `fenced`, with nothing after it."""
    hooks = re.findall(rf"^lxc\.hook\.pre-start = (.*/{container_config.FENCE_HOOK})$", text, re.MULTILINE)
    return bool(hooks) and text.rstrip("\n") == container_config.fenced(text, Path(hooks[-1]), migration).rstrip("\n")


def holds(folder: Path, text: str, migration: str) -> bool:
    """Whether the fence of `migration` is as it was written, in the configuration and in the hook.

    Nothing else is read, because this may be asked while the container is frozen: what a configuration includes can be
    on a file server that is gone, and nothing of it comes after such a fence.
    """
    return is_whole(text, migration) and _is_ours(folder)


def refuses(folder: Path, text: str) -> bool:
    """Whether the fence in this configuration keeps what is in `folder` from being started, whoever wrote it and when.

    Its markers alone do not: whoever removed the hook (or had that done by a tool that edits line by line), or changed
    what it does, may have done so in order to use the container. LXC treats a hook that cannot be run as one that
    refuses.
    """
    hooks: list[str] = []
    for key, value in config_reader.read(str(folder / "config"), text).settings:
        if key in ("lxc.hook", "lxc.hook.pre-start"):  # an empty value cancels those before it
            hooks = [*hooks, value] if value else []
    if not any(Path(hook).name == container_config.FENCE_HOOK for hook in hooks):
        return False
    return _is_ours(folder)


def _is_ours(folder: Path) -> bool:
    """Whether the hook is one that was written here, or does not exist."""
    try:
        return bool(_HOOK.fullmatch((folder / container_config.FENCE_HOOK).read_text(errors="replace")))
    except OSError:
        return True
