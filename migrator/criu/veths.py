# SPDX-License-Identifier: GPL-2.0-or-later
"""The veths of a container that is to be restored: made here beforehand if CRIU cannot make them itself.

Creating a pair with one end in another network namespace requires CAP_NET_ADMIN in both (since the kernel's commit
7b735ef81286). A container with its own user namespace has it only in its own, so CRIU asks a helper that stayed outside
(checkpoint-restore/criu#3006, in 4.2.1; earlier versions get EPERM). But the helper requests the interface index of the
*container's* end in the *host's* namespace: that is usually taken there, by the host's own network card, and the kernel
answers "Operation not supported" (-95). A pair that exists already is only moved in: `external netdev[eth0]:NAME`
(move_veth in criu/net.c). That works with every CRIU since 3.16, so it will stay once CRIU is fixed.

What LXC does to the host's end of a veth at a start is also done for those that CRIU makes, which is so where it cannot
be given one: on an older kernel, or for a name that its configuration file cannot express.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from migrator.base import names
from migrator.base.run import run
from migrator.config.lxc_settings import Net
from migrator.errors.this_host import CommandFailed

CLASS_NET = Path("/sys/class/net")
KERNEL = (5, 13)  # from here on an interface can get a given index in the namespace that it is moved to
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")  # CRIU's configuration file cannot express others
GONE_LIMIT = 5.0  # seconds that the kernel may take to remove what a failed restore has left
POLL = 0.01


@dataclasses.dataclass(frozen=True)
class Veth:
    """A pair that must exist once the container is restored."""

    number: int  # N of lxc.net.N
    inside: str  # its name in the container, set by CRIU
    made: str  # that end's name until then, by which `remove` recognises it; "" if CRIU makes the pair
    outside: str  # the name of the host's end
    bridge: str  # that CRIU plugs it into in the end; "" for none
    mtu: int  # 0: the bridge's
    routes: tuple[str, ...] = ()
    vlan: str = ""  # of the bridge's port, see `Net`
    tagged: tuple[str, ...] = ()
    script: str = ""  # lxc.net.N.script.up

    @property
    def external(self) -> str:
        """A line for CRIU's configuration file."""
        return f"external netdev[{self.inside}]:{self.made}"


def possible(kernel: tuple[int, ...]) -> bool:
    """Whether pairs can be made beforehand on this kernel."""
    return kernel >= KERNEL


def planned(nets: Iterable[Net], migration: str, *, beforehand: bool) -> list[Veth]:
    """The pairs for the configuration's veths; `beforehand` is whether they can be made here.

    A host's end without a configured name is named after the migration. If the configuration does not give the name
    inside, LXC counts (exec_criu in liblxc's criu.c).
    """
    found = []
    for position, net in enumerate(nets):
        inside = net.name or f"eth{position}"
        outside = net.pair or f"veth{migration}{net.index}"
        made = f"{_mark(migration)}{net.index}" if beforehand and _NAME.fullmatch(inside) else ""
        if net.type == "veth":
            found.append(Veth(net.index, inside, made, outside, net.link, net.mtu, net.routes, net.vlan, net.tagged,
                              net.script))
    return found


def _mark(migration: str) -> str:
    return f"mg{migration}-"


def make_command(veth: Veth, mac: str, mtu: int) -> list[str]:
    """Make a pair as LXC does (netdev_configure_server_veth in liblxc's network.c).

    `mac` is for the host's end: a bridge adopts the lowest of its ports' addresses as its own.
    """
    sized = ["mtu", str(mtu)] if mtu else []
    return ["ip", "link", "add", "name", veth.outside, "address", mac, *sized, "type", "veth",
            "peer", "name", veth.made, *sized]


def make(veths: Sequence[Veth]) -> None:
    """Make the pairs, not yet on their bridges. `remove` removes those that CRIU has not moved away.

    Raises CommandFailed and InvalidName.
    """
    for veth in veths:
        _wait_gone(veth.outside)
        if not veth.made:
            continue
        run(make_command(veth, f"fe:{secrets.token_bytes(5).hex(':')}", veth.mtu or _mtu(veth.bridge)))
        if veth.bridge:
            # LXC disables link-local addresses there: the end that is a bridge port needs none.
            setting = Path("/proc/sys/net/ipv6/conf", veth.outside, "disable_ipv6")
            if setting.exists():
                setting.write_text("1")
        else:
            run(["ip", "link", "set", "dev", veth.outside, "up"])


def on_its_bridge(veth: Veth, name: str, version: str, setting: Callable[[str, str], str]) -> list[list[str]]:
    """What LXC does with a veth's end at the start of the container `name`, once it is on its bridge; CRIU does not.

    It sets the VLANs of its port (setup_veth_native_bridge_vlan in liblxc's network.c), then runs the command in
    script.up (run_script_argv in its utils.c), according to lxc.hook.version. `setting` returns a bridge setting, as
    the kernel has it. Raises ValueError if LXC would not start the container.
    """
    commands = []
    if veth.vlan or veth.tagged:
        if setting(veth.bridge, "vlan_filtering") != "1":
            raise ValueError(
                f"{veth.bridge or 'no bridge'} has no VLAN filtering, which lxc.net.{veth.number} needs")
        default = setting(veth.bridge, "default_pvid")
        if veth.vlan and default not in ("0", veth.vlan):
            commands.append(["del", "vid", default])
        if veth.vlan not in ("", "none"):
            commands.append(["add", "vid", veth.vlan, "pvid", "untagged"])
        commands += [["add", "vid", vlan] for vlan in veth.tagged]
    commands = [["bridge", "vlan", verb, "dev", veth.outside, *words] for verb, *words in commands]
    if veth.script:
        link = shlex.join(["veth", *([veth.bridge] if veth.bridge else []), veth.outside])
        if version == "1":
            values = {"TYPE": "up", "SECTION": "net"}
            network = {"TYPE": "veth", "PEER": veth.outside, "PARENT": veth.bridge}
            variables = [*(f"LXC_HOOK_{key}={value}" for key, value in values.items()),
                         *(f"LXC_NET_{key}={value}" for key, value in network.items())]
            commands.append(["env", *variables, "sh", "-c", f"exec {veth.script} {link}"])
        else:
            commands.append(["sh", "-c", f"exec {veth.script} {shlex.join([name, 'net', 'up'])} {link}"])
    return commands


def bridge_setting(bridge: str, name: str) -> str:
    """A setting of a bridge of this host; "" if there is none. Raises InvalidName."""
    return _told(bridge, f"bridge/{name}")


def _mtu(bridge: str) -> int:
    found = _told(bridge, "mtu")
    return int(found) if found.isdecimal() else 0


def _told(interface: str, file: str) -> str:
    path = _folder(interface) / file if interface else None
    return path.read_text().strip() if path and path.exists() else ""


def _folder(interface: str) -> Path:
    """The sysfs directory of an interface named in a configuration; any other name could be a path its author chose."""
    return CLASS_NET / names.inside_interface(interface)


def _wait_gone(name: str) -> None:
    """Wait until an interface that goes with its namespace is gone, which the kernel removes a little later."""
    end = time.monotonic() + GONE_LIMIT
    while _folder(name).exists() and time.monotonic() < end:
        time.sleep(POLL)


def route(veths: Sequence[Veth]) -> None:
    """Add the host's routes to what is behind a running container; safe to repeat.

    An existing route to the same place by another way is left alone: replaced, it would be gone for good. Raises
    CommandFailed after all others have been added.
    """
    failures = []
    for veth in veths:
        for route in veth.routes:
            try:
                run(["ip", "route", "add", route, "dev", veth.outside])
            except CommandFailed as error:
                if not _has_route(route, veth.outside):
                    failures.append(error)
    if failures:
        raise failures[0]


def _has_route(route: str, interface: str) -> bool:
    family = "-6" if ":" in route else "-4"
    return bool(run(["ip", family, "route", "show", "exact", route, "dev", interface], check=False).stdout)


def remove(migration: str) -> None:
    """Remove the pairs made for this migration that are still on the host because the restore failed."""
    for path in CLASS_NET.glob(f"{_mark(migration)}*"):
        run(["ip", "link", "delete", "dev", path.name], check=False)
