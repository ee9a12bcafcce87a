# SPDX-License-Identifier: GPL-2.0-or-later
"""A start on the source's word that was delayed until the word ran out: it refuses itself.

`lxc-start` waits for the container's own hooks and mounts, however long they take. The program that ran it ends it when
the word runs out, but not if that program was itself killed or stopped. So the configuration given to lxc-start ends
with hooks of ours: a pre-start hook, which runs on the host before anything of the container exists, and a start-host
hook, which runs on the host once everything is set up, other hooks and mounts included, right before the container's
first program is executed (lxc_init and lxc_spawn in liblxc's start.c). If either fails, so does the start. Both run as
root, also for an unprivileged container.

A hook is a command line for sh, so there is no file of ours that someone could have removed by then.

LXC's monitor runs its hooks again when the container reboots, long after the word has run out. By then the fence is
gone from the container's own configuration and anyone may start it, so a start is refused only while there is a fence.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from migrator.base import boot_clock

UPTIME = Path("/proc/uptime")  # proc(5): CLOCK_BOOTTIME, for programs such as sh that cannot call clock_gettime(2)
# In whole seconds. The fraction is cut off on both sides so that the word never ends later here than it should.
_SCRIPT = """\
read -r boot <"$1" && [ "$boot" = "$2" ] && read -r up rest <"$3" && [ "${up%%.*}" -lt "$4" ] && exit 0; \
text=$(/bin/cat "$5") || exit 1; \
case $text in *"migrator fence"* | *migrator-fence*) echo "the time to start it is over"; exit 1;; esac"""


def refused(text: str, config: Path, end: float) -> str:
    """A configuration without a fence for a start that is refused from `end` on while `config` still has its fence.

    `end` is by `boot_clock.now`. The result drops lxc.ephemeral: LXC would otherwise destroy the container, disk and
    all, when a start is refused.
    """
    if end == math.inf:
        return text
    lines = [f"lxc.hook.{each} = {_hook(config, end)}" for each in ("pre-start", "start-host")]
    return "\n".join([text.removesuffix("\n"), "lxc.ephemeral = 0", *lines, ""])


def _hook(config: Path, end: float) -> str:
    # If lxcfs shows a different uptime (this host is a container itself), it still advances at the same rate.
    over = float(UPTIME.read_text().split()[0]) + end - boot_clock.now()
    given = (boot_clock.BOOT_ID, boot_clock.BOOT_ID.read_text().strip(), UPTIME, max(0, int(over)), config)
    return shlex.join(["/bin/sh", "-c", _SCRIPT, "migrator", *map(str, given)])
