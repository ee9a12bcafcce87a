# SPDX-License-Identifier: GPL-2.0-or-later
"""A start on the source's word that something has kept busy until the word was over: it refuses itself.

`lxc-start` waits for the container's own hooks, and for what it mounts, as long as these take. Who has started it ends
it with the word; but who was killed or stopped does not. So the configuration that it is given ends with hooks of ours:
one of pre-start, which runs on this host before anything of the container is made, and one of start-host, which runs on
this host when all is set up, its other hooks and mounts too, right before its first program is executed (lxc_init and
lxc_spawn in liblxc's start.c). The start fails with either; both run as root, also for an unprivileged container.

A hook is a command line for sh. So there is no file of ours that somebody could have removed by then.

LXC's monitor runs its hooks again when the container reboots, long after the word. By then the container's own
configuration has lost its fence, and whoever likes may start it: so a start is refused only as long as there is any.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from migrator.base import boot_clock

UPTIME = Path("/proc/uptime")  # proc(5): CLOCK_BOOTTIME, for who has no call of it
# In whole seconds: with the part that is cut off of either, it is over no later than the word.
_SCRIPT = """\
read -r boot <"$1" && [ "$boot" = "$2" ] && read -r up rest <"$3" && [ "${up%%.*}" -lt "$4" ] && exit 0; \
text=$(/bin/cat "$5") || exit 1; \
case $text in *"migrator fence"* | *migrator-fence*) echo "the time to start it is over"; exit 1;; esac"""


def refused(text: str, config: Path, end: float) -> str:
    """An unfenced configuration, for a start refused from `end` on, by `boot_clock.now`, while `config` has a fence.

    It makes nothing ephemeral: LXC would destroy the container, disk and all, at the end of a start that was refused.
    """
    if end == math.inf:
        return text
    lines = [f"lxc.hook.{each} = {_hook(config, end)}" for each in ("pre-start", "start-host")]
    return "\n".join([text.removesuffix("\n"), "lxc.ephemeral = 0", *lines, ""])


def _hook(config: Path, end: float) -> str:
    # Where lxcfs shows another uptime than the clock's (a host that is a container itself), that runs on as fast.
    over = float(UPTIME.read_text().split()[0]) + end - boot_clock.now()
    given = (boot_clock.BOOT_ID, boot_clock.BOOT_ID.read_text().strip(), UPTIME, max(0, int(over)), config)
    return shlex.join(["/bin/sh", "-c", _SCRIPT, "migrator", *map(str, given)])
