# SPDX-License-Identifier: GPL-2.0-or-later
"""What in a container's configuration matters for a move, read from the file's text (lxc.container.conf(5)).

`migrator.config.config_reader` has the rules by which LXC reads it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from migrator.base import names
from migrator.config import config_reader, container_config, mount_file

_NET_KEY = re.compile(r"lxc\.net\.(\d{1,4})\.([a-z0-9_.]+)")


@dataclasses.dataclass(frozen=True)
class Net:
    """One `lxc.net.N` section."""

    index: int
    type: str = ""
    link: str = ""  # the bridge, or the parent of a macvlan, ipvlan or vlan
    name: str = ""  # in the container; eth0, eth1, ... if empty
    hwaddr: str = ""
    pair: str = ""  # the veth's end on the host
    addresses: tuple[str, ...] = ()  # with prefix length, as written
    mtu: int = 0  # 0: the link's
    routes: tuple[str, ...] = ()  # of the host, to what is behind the container (veth.ipv4.route, veth.ipv6.route)
    mode: str = ""  # of a veth: bridge (the default) or router
    vlan: str = ""  # of the bridge's port, untagged; "none" for no VLAN; "": the bridge's default
    tagged: tuple[str, ...] = ()
    script: str = ""  # script.up, a command on the host


@dataclasses.dataclass(frozen=True)
class MountEntry:
    """One `lxc.mount.entry`, or a line of the file that `lxc.mount.fstab` names: fstab(5)'s first four fields."""

    source: str
    target: str
    type: str = "none"
    options: tuple[str, ...] = ()

    @property
    def bind(self) -> bool:
        """LXC goes by the beginning of an option (parse_vfs_attr in src/lxc/conf.c)."""
        return any(option.startswith(("bind", "rbind")) for option in self.options)


@dataclasses.dataclass(frozen=True)
class IdMap:
    """One `lxc.idmap`: the `count` ids from `inside` on are those from `outside` on, on the host."""

    kind: str  # "u" or "g"
    inside: int
    outside: int
    count: int


@dataclasses.dataclass(frozen=True)
class Include:
    """A file that the configuration includes and that has settings."""

    path: str
    by: str  # what `lxc.include` names: the file itself or its directory
    digest: str


@dataclasses.dataclass(frozen=True)
class Config:
    arch: str = ""
    rootfs: str = ""  # path, without a storage prefix
    backend: str = ""  # "dir", "btrfs", "overlay", "lvm", ...; empty if LXC detects it
    nets: tuple[Net, ...] = ()
    mounts: tuple[MountEntry, ...] = ()
    mount_file: str = ""  # lxc.mount.fstab, if its lines do not travel
    mount_auto: tuple[str, ...] = ()
    idmaps: tuple[IdMap, ...] = ()
    apparmor: str = ""
    selinux: str = ""
    seccomp: str = ""  # path of the profile
    seccomp_notify: str = ""  # lxc.seccomp.notify.proxy
    console: str = ""  # lxc.console.path
    ttys: int = 0
    autodev: bool = True
    ephemeral: bool = False
    hooks: tuple[tuple[str, str], ...] = ()  # (lxc.hook.X, command)
    includes: tuple[Include, ...] = ()
    cgroup: tuple[tuple[str, str], ...] = ()  # lxc.cgroup.* and lxc.cgroup2.* limits
    cgroup_place: str = ""  # lxc.cgroup.dir.container: the cgroup itself, without LXC's own name for it
    shared_namespaces: tuple[str, ...] = ()  # lxc.namespace.share.* and .keep
    # Why LXC refuses it or it cannot be carried over: a file, and what is wrong with it.
    faults: tuple[tuple[str, str], ...] = ()


def read(path: Path) -> Config:
    """The configuration in this file, as it travels, with its includes; one with a fault if it cannot be read."""
    try:
        text = config_reader.read_file(str(path))
    except OSError as error:
        return Config(faults=((str(path), f"cannot be read: {error.strerror}"),))
    return parse(mount_file.inlined(container_config.unfenced(text), str(path)), str(path))


def parse(text: str, path: str = "config", read_file: Callable[[str], str] = config_reader.read_file,
          list_folder: Callable[[str], list[str] | None] = config_reader.list_folder) -> Config:
    """The configuration in `text`, the content of the file `path`."""
    reading = config_reader.read(path, text, read_file, list_folder)
    items = list(reading.settings)
    values: dict[str, list[str]] = {}
    for key, value in items:
        if value:
            values.setdefault(key, []).append(value)
        else:
            values.pop(key, None)  # an empty value cancels what came before

    def last(key: str) -> str:
        return values.get(key, [""])[-1]

    backend, rootfs = _rootfs(last("lxc.rootfs.path"))
    fstab = mount_file.named(items)
    return Config(
        arch=last("lxc.arch"), rootfs=rootfs, backend=backend,
        nets=_nets(items),
        mounts=tuple(_mounts([*config_reader.lines(_fstab(fstab, read_file)), *values.get("lxc.mount.entry", [])])),
        mount_file=fstab,
        mount_auto=tuple(word for value in values.get("lxc.mount.auto", []) for word in value.split()),
        idmaps=tuple(_idmaps(values.get("lxc.idmap", []))),
        apparmor=last("lxc.apparmor.profile"), selinux=last("lxc.selinux.context"),
        seccomp=last("lxc.seccomp.profile"), seccomp_notify=last("lxc.seccomp.notify.proxy"),
        console=last("lxc.console.path"), ttys=_number(last("lxc.tty.max")),
        autodev=last("lxc.autodev") != "0", ephemeral=last("lxc.ephemeral") == "1",
        hooks=tuple(
            (key, value) for key, found in values.items() if key.startswith("lxc.hook.") and key != "lxc.hook.version"
            for value in found
        ),
        includes=tuple(Include(path, reading.by[path], config_reader.digest(text))
                       for path, text in reading.includes.items() if config_reader.settings(text)),
        faults=reading.faults,
        cgroup=tuple(
            (key, value) for key, found in values.items() if key.startswith(("lxc.cgroup.", "lxc.cgroup2."))
            and not key.endswith((".dir", ".relative")) and ".dir." not in key for value in found
        ),
        cgroup_place=last("lxc.cgroup.dir.container"),
        shared_namespaces=tuple(
            f"{key.removeprefix('lxc.namespace.')} {value}" for key, found in values.items()
            if key.startswith(("lxc.namespace.share.", "lxc.namespace.keep")) for value in found
        ),
    )


def _fstab(path: str, read_file: Callable[[str], str]) -> str:
    try:
        return read_file(path) if path else ""
    except (OSError, ValueError):
        return ""


def _rootfs(value: str) -> tuple[str, str]:
    backend, colon, path = value.partition(":")
    if colon and backend.isalnum():
        return backend, path
    return "", value


def _nets(items: list[tuple[str, str]]) -> tuple[Net, ...]:
    sections: dict[int, dict[str, list[str]]] = {}
    for key, value in items:
        if key == "lxc.net" and not value:
            sections.clear()
        matched = _NET_KEY.fullmatch(key)
        if matched:
            section = sections.setdefault(int(matched[1]), {})
            section.setdefault(matched[2], []).append(value)
    return tuple(_net(index, section) for index, section in sorted(sections.items()))


def _net(index: int, section: dict[str, list[str]]) -> Net:
    def last(key: str) -> str:
        return section.get(key, [""])[-1]

    def interface(key: str) -> str:
        return names.cut_interface(last(key))

    addresses = [*section.get("ipv4.address", []), *section.get("ipv6.address", [])]
    routes = [*section.get("veth.ipv4.route", []), *section.get("veth.ipv6.route", [])]
    return Net(
        index=index, type=last("type"), link=interface("link"), name=interface("name"), hwaddr=last("hwaddr").lower(),
        pair=interface("veth.pair"), addresses=tuple(address.split()[0] for address in addresses if address.strip()),
        mtu=_number(last("mtu")), routes=tuple(route for route in routes if route),
        mode=last("veth.mode"), vlan=last("veth.vlan.id"),
        tagged=tuple(vlan for vlan in section.get("veth.vlan.tagged.id", []) if vlan), script=last("script.up"),
    )


def _mounts(lines: Iterable[str]) -> Iterable[MountEntry]:
    for line in lines:
        fields = [_unescape(field) for field in line.split()]
        if len(fields) >= 2 and not fields[0].startswith("#"):
            kind = fields[2] if len(fields) > 2 else "none"
            options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
            yield MountEntry(fields[0], fields[1], kind, options)


def _unescape(field: str) -> str:
    """fstab(5) and /proc/PID/mountinfo write a space as an octal escape."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _idmaps(values: Iterable[str]) -> Iterable[IdMap]:
    for value in values:
        fields = value.split()
        if len(fields) == 4 and fields[0] in ("u", "g", "b") and all(field.isdecimal() for field in fields[1:]):
            for kind in "ug" if fields[0] == "b" else fields[0]:
                yield IdMap(kind, *(int(field) for field in fields[1:]))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0
