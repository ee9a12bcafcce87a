# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a container is restored with: its own, but for what belongs to a start alone.

LXC reads it in the container's place (`lxc-checkpoint -r --rcfile`), and the monitor that then holds the container
keeps it in memory, until the container ends. The next start reads the container's own file again. Pure functions of
text: the container's configuration with everything that it includes in, in LXC's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

LEFT_OUT = re.compile(
    # Whatever it does was done on the other host; there is one that refuses, too: our fence (container_config).
    r"lxc\.hook\.pre-start"
    # liblxc hands the word to CRIU as it stands (--lsm-profile), also `generated` and on a kernel without AppArmor.
    # Without it CRIU gives each task what confined that one before, as the images have it.
    r"|lxc\.apparmor\..*"
)
# These may read the container's configuration. LXC tells them that it is the file that it has read itself.
LATER_HOOKS = ("lxc.hook.stop", "lxc.hook.post-stop")


def text(settings: Iterable[tuple[str, str]], *, config_file: str, veths: Mapping[int, str]) -> str:
    """The configuration for a restore, from the settings of the container's own (`config_reader`).

    `config_file` is the container's own, `veths` are the names on this host for the veths of `lxc.net.N`.
    """
    kept = []
    for key, value in settings:
        if key in LATER_HOOKS and value:
            kept.append(_line(key, f"env LXC_CONFIG_FILE={config_file} {value}"))
        elif not LEFT_OUT.fullmatch(key):
            kept.append(_line(key, value))
    kept += [f"lxc.net.{number}.veth.pair = {name}" for number, name in veths.items()]
    return "\n".join([*kept, ""])


def _line(key: str, value: str) -> str:
    """A setting as LXC reads it back: it takes one pair of quotes away."""
    quoted = len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]
    return f'{key} = "{value}"' if quoted else f"{key} = {value}"
