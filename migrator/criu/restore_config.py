# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a container is restored with: its own, except for what only belongs to a start.

LXC reads it instead of the container's (`lxc-checkpoint -r --rcfile`), and the monitor keeps it in memory until the
container ends. The next start reads the container's own file again. Pure functions of text: the container's
configuration with all included files, in LXC's order.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from migrator.config import mount_file
from migrator.host import mountinfo

LEFT_OUT = re.compile(
    # Their work at a start was done on the other host; one of them is our fence, which refuses (container_config).
    r"lxc\.hook\.pre-start"
    # liblxc passes the word to CRIU verbatim (--lsm-profile), even `generated` and even on a kernel without AppArmor.
    # Without it, CRIU confines each task by the profile that it had before, according to the images.
    r"|lxc\.apparmor\..*"
    # Replaced by what the container really had when it was dumped.
    r"|lxc\.console\.path|lxc\.tty\.max|lxc\.pty\.max"
    r"|lxc\.rootfs\.mount"
    # Its lines are appended to those of lxc.mount.entry, because liblxc tells CRIU only of these.
    r"|lxc\.mount\.fstab"
)
# These may read the container's configuration. LXC tells them that it is the file that it has itself read.
LATER_HOOKS = ("lxc.hook.stop", "lxc.hook.post-stop")


# The monitor of a restored container does not start it again when it reboots, as that of a started one does: it ends,
# as if the container had been stopped (do_restore in liblxc's criu.c). But the container's PID 1, which has not been
# reaped yet, was then ended by SIGHUP (reboot(2)): field 52 of proc_pid_stat(5), here the 50th because counting starts
# at the state.
_REBOOT = (
    'lxcpath=$1; for p in $(cat /proc/$PPID/task/$PPID/children); do set -- $(sed "s/.*) //" /proc/$p/stat); '
    '[ "$1${50}" != Z1 ] || exec env -i PATH="$PATH" lxc-start -d -n "$LXC_NAME" -P "$lxcpath" '
    "</dev/null >/dev/null 2>&1; done"  # the monitor has no descriptor 0, which lxc-start would use for something else
)


def reboot_hook(lxcpath: Path) -> str:
    """The command for lxc.hook.post-stop that starts a restored container again when it has rebooted."""
    return f"sh -c '{_REBOOT}' sh {shlex.quote(str(lxcpath))}"


def text(settings: Collection[tuple[str, str]], *, container: Path, root: Path, veths: Mapping[int, str], console: bool,
         fstab: str, real: Callable[[str], str]) -> str:
    """The configuration for a restore, from the settings of the container's own (`config_reader`).

    `container` is its directory, `root` an empty one for LXC to mount its root file system on, `veths` the names on
    this host for the veths of `lxc.net.N`, `console` whether one was mounted in the container, `fstab` the text of
    lxc.mount.fstab. `real` returns a path without symbolic links.
    """
    kept = []
    for key, value in settings:
        if key in LATER_HOOKS and value:
            kept.append(_line(key, f"env LXC_CONFIG_FILE={shlex.quote(str(container / 'config'))} {value}"))
        elif key == "lxc.mount.entry" and value:
            kept.append(_line(key, _mount(value, real)))
        elif not LEFT_OUT.fullmatch(key):
            kept.append(_line(key, value))
    kept += [_line("lxc.mount.entry", _mount(entry, real)) for entry in mount_file.lines(fstab)]
    # LXC's own place for it is below /usr/lib. A container with its own user namespace that binds that directory could
    # not be restored, because its root may not unmount what is mounted there (has_locked_children in the kernel's
    # fs/namespace.c).
    kept.append(f"lxc.rootfs.mount = {root}")
    # With more ptys than one, LXC takes the console from the container's own devpts at a start, and provides none at a
    # restore.
    kept += ["lxc.pty.max = 1"] if console else ["lxc.console.path = none"]
    kept.append("lxc.tty.max = 0")  # LXC makes none at a restore, but would look for them later
    if ("lxc.ephemeral", "1") not in settings:  # those are destroyed when they end
        kept.append(f"lxc.hook.post-stop = {reboot_hook(container.parent)}")
    kept += [f"lxc.net.{number}.veth.pair = {name}" for number, name in veths.items()]
    return "\n".join([*kept, ""])


def _mount(entry: str, real: Callable[[str], str]) -> str:
    """An `lxc.mount.entry` for a restore: LXC follows symbolic links on the way to what it binds, CRIU does not."""
    fields = entry.split()
    if len(fields) > 3 and fields[0].startswith("/") and any(
            option.startswith(("bind", "rbind")) for option in fields[3].split(",")):
        fields[0] = mountinfo.escape(real(mountinfo.unescape(fields[0])))
    return " ".join(fields)


def _line(key: str, value: str) -> str:
    """A setting written so that LXC reads it back unchanged: LXC strips one pair of quotes."""
    quoted = len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]
    return f'{key} = "{value}"' if quoted else f"{key} = {value}"
