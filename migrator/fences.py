# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a fence that was written into a configuration holds: it is text, and somebody may have changed it since."""

from __future__ import annotations

import re
from pathlib import Path

from migrator import config_reader, container_config


def is_whole(text: str, migration: str) -> bool:
    """Whether this configuration has the fence of `migration` as `fenced` writes it, with nothing behind it."""
    hooks = re.findall(rf"^lxc\.hook\.pre-start = (.*/{container_config.FENCE_HOOK})$", text, re.MULTILINE)
    return bool(hooks) and text.rstrip("\n") == container_config.fenced(text, Path(hooks[-1]), migration).rstrip("\n")


def refuses(folder: Path, text: str) -> bool:
    """Whether the fence in this configuration keeps what lies in `folder` from being started, whoever wrote it when.

    Its marks alone do not: who has taken the hook away (or had it done by what edits line by line), or has it refuse no
    more, may have done so to use the container. LXC takes a hook that cannot be run for one that refuses.
    """
    hooks: list[str] = []
    for key, value in config_reader.read(str(folder / "config"), text).settings:
        if key in ("lxc.hook", "lxc.hook.pre-start"):  # an empty value takes back those before it
            hooks = [*hooks, value] if value else []
    if not any(Path(hook).name == container_config.FENCE_HOOK for hook in hooks):
        return False
    try:
        script = (folder / container_config.FENCE_HOOK).read_text(errors="replace")
        return script.rstrip().endswith(container_config.REFUSAL)
    except OSError:
        return True
