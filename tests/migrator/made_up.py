# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts that were never gathered: two hosts and a container between which nothing stands in the way."""

from __future__ import annotations

import dataclasses
import functools
import struct
import types
import typing
from typing import Any

from hypothesis import strategies as st

from migrator.config.lxc_settings import Config, Net
from migrator.host.mountinfo import Mount
from migrator.host.net_state import Interface
from migrator.preflight.facts.container_facts import ContainerFacts, Rootfs
from migrator.preflight.facts.cpu import MAGICS, Cpu
from migrator.preflight.facts.criu_facts import CriuFacts
from migrator.preflight.facts.host_facts import PROGRAMS, HostFacts, Storage
from migrator.preflight.facts.task_facts import Note, Tasks

GIB = 1 << 30
CPU = Cpu(vendor=2, family=25, model=1, name="AMD EPYC", capability=(0xFFFFFFFF,) * 19, xfeatures=231,
          xsave_size=2696, xsave_size_max=2696)
CRIU = CriuFacts(version="4.2.1", check_ok=True, check_output="Looks good.", cpu=CPU)
BRIDGE = Interface("lxcbr0", "bridge", "aa:00:00:00:00:01", ("10.0.3.1/24", "fd00:3::1/64"), mtu=1500, up=True)
LO = Interface("lo", "loopback", "00:00:00:00:00:00", mtu=65536, up=True)
ETH0 = Interface("eth0", "veth", "00:16:3e:00:00:05", ("10.0.3.50/24",), mtu=1500, up=True)
NET = Net(0, "veth", "lxcbr0", "eth0", "00:16:3e:00:00:05", addresses=("10.0.3.50/24",))
ROOT = Mount("/", "btrfs", "root")

SOURCE = HostFacts(
    name="here", identity="1" * 32, time=1_700_000_000.0, uptime=5000.0, kernel="6.18.4-amd64", arch="x86_64",
    migrator="0.1.0", lxc="7.0.0", python_lxc=True, btrfs_progs="7.1", programs=PROGRAMS, criu=CRIU, cgroups="unified",
    controllers=("cpu", "memory", "pids"), storage=Storage("/pool", True, "btrfs", 50 * GIB, 100 * GIB),
    memory_total=16 * GIB, memory_available=8 * GIB,
    interfaces=(LO, BRIDGE), capabilities=2**41 - 1, user_namespaces=10_000, time_namespaces=True,
)
DESTINATION = dataclasses.replace(
    SOURCE, name="there", identity="2" * 32, uptime=90.0,
    interfaces=(LO, dataclasses.replace(BRIDGE, mac="aa:00:00:00:00:02", addresses=("10.0.3.2/24", "fd00:3::2/64"))),
)
CONTAINER = ContainerFacts(
    name="c1", lxcpath="/pool", state="RUNNING", init_pid=4711, init_name="redis-server",
    config=Config(rootfs="/pool/c1/rootfs", backend="btrfs", nets=(NET,), console="none"),
    rootfs=Rootfs("/pool/c1/rootfs", "btrfs", True, used=GIB), memory=GIB // 4,
    tasks=Tasks(2, 3, (0,), ("redis-server", "sh"), GIB // 4, (
        Note("anon-inode", "eventpoll"), Note("socket", "TCP"), Note("device", "char 1:3 /dev/null"),
        Note("watch-file", "/etc/passwd"), Note("deleted-file", "/tmp/small", size=4096),
    )),
    mounts=(ROOT, Mount("/proc", "proc", "own"), Mount("/dev", "tmpfs", "own")),
    interfaces=(LO, ETH0),
)


def change(record: Any, changes: dict[str, Any]) -> Any:
    """The record with some fields set; `a.b` sets the field b of the record in field a."""
    for path, value in changes.items():
        head, dot, rest = path.partition(".")
        inner = change(getattr(record, head), {rest: value}) if dot else value
        record = dataclasses.replace(record, **{head: inner})
    return record


def notes(*pairs: tuple[str, str], size: int = 0) -> tuple[Note, ...]:
    """Notes of (kind, detail), all about one process."""
    return tuple(Note(kind, detail, 1, 4712, "worker", size) for kind, detail in pairs)


TEXT = st.one_of(st.text(max_size=12), st.sampled_from([
    "lxcbr0", "10.0.3.50/24", "fe80::1/64", "0/0", "veth", "macvlan", "bridge", "char 1:3 /dev/null", "char 99999:1 x",
    "external", "own", "/", "/dev/pts/1", "/srv", "c1", "4.2", "99999999999.1", "6.18", "generated", "unified", "btrfs",
    "tmpfs", "attached", "socket", "anon-inode", "device", "nested-namespace", "deleted-file", "lxc.cgroup2.",
    "lxc.cgroup2.x.y", "RUNNING", "bind", "u", "0:0",
]))
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT, bool: st.booleans(), int: st.one_of(st.integers(-3, 300), st.integers(1 - 2**64, 2**64 - 1)),
    float: st.floats(-(2.0**63), 2.0**63),
}


@functools.cache
def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have, however senseless."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin in (types.UnionType, typing.Union):
        return st.none() | anything(next(argument for argument in arguments if argument is not types.NoneType))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(anything(arguments[0]), max_size=3).map(tuple)
    if origin is frozenset:
        return st.frozensets(anything(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*(anything(argument) for argument in arguments))
    if origin is dict or not dataclasses.is_dataclass(hint):
        return st.dictionaries(TEXT, anything(arguments[1]), max_size=3)
    hints = typing.get_type_hints(hint)
    made: Any = hint
    return st.builds(made, **{field.name: anything(hints[field.name]) for field in dataclasses.fields(hint)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=20,
)


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def image(made: Cpu) -> bytes:
    """cpuinfo.img as CRIU writes it."""
    entry = b"".join(varint(field << 3) + varint(value) for field, value in [
        (1, made.vendor), (2, made.family), (3, made.model), (4, made.stepping), (5, 2),
        *((6, word) for word in made.capability), (8, made.xfeatures), (9, made.xsave_size), (10, made.xsave_size_max),
    ])
    entry += varint(7 << 3 | 2) + varint(len(made.name)) + made.name.encode()
    body = varint(1 << 3 | 2) + varint(len(entry)) + entry
    return MAGICS + struct.pack("<I", len(body)) + body
