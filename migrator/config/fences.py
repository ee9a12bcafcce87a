# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a fence that was written into a configuration holds: it is text, and somebody may have changed it since."""

from __future__ import annotations

import re
from pathlib import Path

from migrator.config import config_reader, container_config

_QUOTED = r"'(?:[^']|'\\'')*'"
# What `fence` has written as a hook, since the first version: some have let a restore of their own through.
_HOOK = re.compile(
    r"#!/bin/sh\n# lxc\.hook\.pre-start, see migrator\(1\)\n"
    r'(?:\[ "\$MIGRATOR_RESTORES" != [0-9a-f]{8} \] \|\| exit 0\n)?'
    rf"printf '%s\\n' {_QUOTED}"
    rf"(?: \| tee /dev/stderr|\nprintf '%s\\n' {_QUOTED} 2>/dev/null >>?/proc/\$PPID/fd/2)\nexit 1\n?")


def is_whole(text: str, migration: str) -> bool:
    """Whether this configuration has the fence of `migration` as `fenced` writes it, with nothing behind it."""
    hooks = re.findall(rf"^lxc\.hook\.pre-start = (.*/{container_config.FENCE_HOOK})$", text, re.MULTILINE)
    return bool(hooks) and text.rstrip("\n") == container_config.fenced(text, Path(hooks[-1]), migration).rstrip("\n")


def holds(folder: Path, text: str, migration: str) -> bool:
    """Whether the fence of `migration` is as it was written, in the configuration and in the hook.

    Nothing else is read, as who asks may do so while the container stands still: what a configuration includes can lie
    on a file server that is gone, and nothing of it comes behind such a fence.
    """
    return is_whole(text, migration) and _is_ours(folder)


def refuses(folder: Path, text: str) -> bool:
    """Whether the fence in this configuration keeps what lies in `folder` from being started, whoever wrote it when.

    Its marks alone do not: who has taken the hook away (or had it done by what edits line by line), or has changed what
    it does, may have done so to use the container. LXC takes a hook that cannot be run for one that refuses.
    """
    hooks: list[str] = []
    for key, value in config_reader.read(str(folder / "config"), text).settings:
        if key in ("lxc.hook", "lxc.hook.pre-start"):  # an empty value takes back those before it
            hooks = [*hooks, value] if value else []
    if not any(Path(hook).name == container_config.FENCE_HOOK for hook in hooks):
        return False
    return _is_ours(folder)


def _is_ours(folder: Path) -> bool:
    """Whether the hook is one that was written here, or is not there."""
    try:
        return bool(_HOOK.fullmatch((folder / container_config.FENCE_HOOK).read_text(errors="replace")))
    except OSError:
        return True
