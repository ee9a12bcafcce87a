# SPDX-License-Identifier: GPL-2.0-or-later
"""What a container's cgroups may use: recorded when it is dumped, set again when it is restored, before a task runs.

liblxc applies a configuration's `lxc.cgroup2.*` only at a start (cgfsng_setup_limits in its cgfsng.c; from lxc#4695 on,
which is not in 7.0, also at a restore), and CRIU restores only cgroup v2's core properties (criu/cgroup-props.c). So a
container that was moved had no limits any more, nor had the units of a systemd inside.

Each limit is set to what it was at the dump, even if someone changed it after the start (lxc-cgroup(1)). If the dump
finds the kernel's default, the configuration's value applies, because an earlier restore may have lost it.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os

from migrator.base import deep_folders
from migrator.host import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECORD = "cgroup-limits"  # travels beside the images: a line `NAME VALUE<tab>PATH` for each limit
TAKEN = "cgroup-limits.taken"  # made for the restore: what of RECORD is set here, see `taken`
CONTROLLERS = "cgroup-controllers"  # travels beside the images: a line `CONTROLLERS<tab>PATH` for each cgroup
PLAN = "cgroup-limits.wanted"  # made for the restore: a line `NAME VALUE` for each setting of the configuration
RECORD_LIMIT = 16 << 20  # bytes

# The limits whose values mean the same on another host, with their defaults (cgroup-v2.rst in the kernel's documents).
# Not the entries of io.* for single devices, which are named by their numbers on this host.
UNSET = {
    "cgroup.max.depth": "max", "cgroup.max.descendants": "max",
    "cpu.idle": "0", "cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.uclamp.max": "max", "cpu.uclamp.min": "0.00",
    "cpu.weight": "100", "cpuset.cpus": "", "cpuset.mems": "", "io.weight": "default 100",
    "memory.high": "max", "memory.low": "0", "memory.max": "max", "memory.min": "0", "memory.oom.group": "0",
    "memory.swap.high": "max", "memory.swap.max": "max", "memory.zswap.max": "max", "memory.zswap.writeback": "1",
    "pids.max": "max",
}
# Not limits, but a precedence over others at their expense: memory that others do not get even if they die for lack of
# it, and a larger share of CPU and disk time than each of them has.
_BEFORE_OTHERS = ("memory.min", "memory.low", "cpu.uclamp.min")
_WEIGHTS = ("cpu.weight", "io.weight")
_FAIR = 100  # the default weight of a cgroup
_HUGE = ("64KB", "2MB", "16MB", "32MB", "512MB", "1GB", "16GB")  # huge page sizes on Linux's architectures
UNSET |= {f"hugetlb.{size}{kind}": "max" for size in _HUGE for kind in (".max", ".rsvd.max")}
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate("KMGTPE", 1)}  # memparse in the kernel's lib/cmdline.c
_SUBTREE = "cgroup.subtree_control"


def record(top: str) -> str:
    """All limits that someone has set in the cgroup `top` and below."""
    lines = []
    for folder, files in deep_folders.walk(top):
        below = os.path.relpath(folder, top)
        for name in UNSET.keys() & set(files):
            value = _plain(name, _read(f"{folder}/{name}"))
            # With cpu.idle set the weight reads as 0, which cannot be written.
            if value is not None and not _unset(name, value) and (name, value) != ("cpu.weight", "0"):
                lines.append(f"{name} {value}\t{below}\n")
    return "".join(sorted(lines))


def _plain(name: str, value: str | None) -> str | None:
    """The part of a limit that holds everywhere, without entries for single devices; None if that cannot be determined.
    """
    lines = [] if value is None else value.split("\n")
    return next((line for line in lines if not _of_device(name, line)), None)


def _of_device(name: str, value: str) -> bool:
    return name == "io.weight" and ":" in value


def _unset(name: str, value: str) -> bool:
    """Whether a limit has the kernel's default. For hugetlb that is a number, the largest possible."""
    return value == UNSET[name] or (name.startswith("hugetlb.") and value.isdecimal() and int(value) >= 1 << 62)


def controllers(top: str) -> str:
    """Which controllers each cgroup at `top` and below enables for its children."""
    lines = []
    for folder, _ in deep_folders.walk(top):
        if value := _read(f"{folder}/{_SUBTREE}"):
            lines.append(f"{value}\t{os.path.relpath(folder, top)}\n")
    return "".join(lines)  # from the top down, the order in which they have to be enabled


def configured(settings: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The cgroup file and the value for each `lxc.cgroup2.*` of a configuration, in LXC's order.

    An empty value cancels earlier settings of the same name, or all (lxc_clear_cgroups in liblxc's conf.c).
    """
    found: list[tuple[str, str]] = []
    for key, value in settings:
        name = key.removeprefix("lxc.cgroup2.")
        if key in ("lxc.cgroup2", "lxc.cgroup2."):
            found.clear()
        elif name != key and not value:
            found = [each for each in found if each[0] != name]
        elif name != key:
            found.append((name, value))
    return found


def plan(limits: Iterable[tuple[str, str]]) -> str:
    """The text of PLAN from `configured`; raises ValueError for a name that is not a cgroup file's."""
    lines = []
    for name, value in limits:
        if "/" in name or " " in name or "\n" in value:
            raise ValueError(f"lxc.cgroup2.{name} is not a limit")
        if not name.startswith("devices"):  # this is how LXC tells them apart; see `device_filter`
            lines.append(f"{name} {value}\n")
    return "".join(lines)


def enable(top: str, recorded: str, root: str = cgroups.TOP) -> None:
    """Enable, in the cgroup `top` and below, the controllers in a record; raises OSError, ValueError.

    BlockingIOError if a task is in the way. CRIU would do this too late: see `cgroup_image`.
    """
    for value, below in _lines(recorded):
        folder = _within(top, below)
        if os.path.isdir(folder):  # CRIU leaves out empty cgroups
            for name in value.split():
                _delegate(f"{folder}/any", name, root)


def favours(name: str, value: str) -> bool:
    """Whether a setting of a container's cgroup gives it precedence over everything else on its host."""
    if name in _WEIGHTS:
        *device, weight = value.split() or [""]
        return len(device) > 1 or not (weight.isascii() and weight.isdecimal() and int(weight) <= _FAIR)
    return name in _BEFORE_OTHERS and value not in ("0", UNSET[name])


def taken(recorded: str) -> tuple[str, list[str]]:
    """What of a record may be set for a sender who must not favour a container, and the settings that may not.

    Below the container's own cgroup, settings only divide what that cgroup has (cgroup-v2.rst).
    """
    kept, dropped = "", []
    for entry, below in _lines(recorded):
        name, _, value = entry.partition(" ")
        if below and os.path.normpath(below) == "." and favours(name, value):
            dropped.append(entry)
        else:
            kept += f"{entry}\t{below}\n"
    return kept, dropped


def apply(top: str, planned: str, recorded: str, root: str = cgroups.TOP) -> None:
    """Set the limits of a record and of a configuration's plan, and read them back; raises OSError, ValueError."""
    killed = _killed(top)
    for folder, name, value in merged(planned, recorded):
        if os.path.isdir(path := _within(top, folder)):
            _set(path, name, value, root)
    if _killed(top) != killed:
        raise OSError("its memory does not fit into memory.max here")


def merged(planned: str, recorded: str) -> list[tuple[str, str, str]]:
    """The directory, the file and the value of each limit to be set.

    Each only once, because tasks are there already: none may be killed by a memory.max that the next line would raise.
    """
    live: dict[tuple[str, str], str] = {}
    for entry, below in _lines(recorded):
        name, _, value = entry.partition(" ")
        if name not in UNSET or _of_device(name, value):
            raise ValueError(f"{name} is not a cgroup limit")
        live[below, name] = value
    wanted: list[tuple[str, str, str]] = []
    for line in filter(None, planned.split("\n")):
        name, _, value = line.partition(" ")
        if _of_device(name, value):  # in addition to what holds for all the others
            wanted.append((".", name, value))
            continue
        if name in UNSET:
            wanted = [each for each in wanted if each[1] != name or _of_device(*each[1:])]
        wanted.append((".", name, live.get((".", name), value)))
    return wanted + [(*place, value) for place, value in live.items() if (*place, value) not in wanted]


def holds(name: str, written: str, read: str) -> bool:
    """Whether a cgroup file that reads `read` reflects what was written to it."""
    if name == _SUBTREE:
        return all((word[1:] in read.split()) == (word[0] == "+") for word in written.split())
    return any(_same_line(name, written.split(), line.split()) for line in read.split("\n"))


def _same_line(name: str, written: Sequence[str], read: Sequence[str]) -> bool:
    if read[:1] == ["default"] and written[:1] != ["default"]:
        read = read[1:]
    plain, found = ([word for word in words if "=" not in word] for words in (written, read))
    if name == "cpu.max":
        found = found[:len(plain)]  # the second one may be missing
    return (len(plain) == len(found) and all(_same(name, *pair) for pair in zip(plain, found, strict=True))
            and all(any(_same_pair(name, word, each) for each in read) for word in written if "=" in word))


def _same_pair(name: str, written: str, read: str) -> bool:
    key, _, value = written.partition("=")
    return read.startswith(f"{key}=") and _same(name, value, read[len(key) + 1:])


def _same(name: str, written: str, read: str) -> bool:
    if written == read or (written == "max" and name in UNSET and _unset(name, read)):
        return True
    if name.startswith("cpuset."):
        return _numbers(written) == _numbers(read) != set()
    try:
        number, found = _size(written), float(read)
    except ValueError:
        return False
    return number - _granularity(name) < found <= number


def _granularity(name: str) -> int:
    """The multiple in bytes to which the kernel rounds a limit down."""
    size = name.split(".")[1]
    if name == "memory.oom.group":
        return 1
    if name.startswith("hugetlb.") and size[:-2].isdecimal():
        return int(_size(size[:-1]))
    return os.sysconf("SC_PAGE_SIZE") if name.startswith("memory.") else 1


def _size(text: str) -> float:
    unit = _UNITS.get(text[-1:].upper())
    return float(text[:-1]) * unit if unit else float(text)


def _numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), min(int(last or first), 1 << 16) + 1))
    return found


def _set(folder: str, name: str, value: str, root: str) -> None:
    path = f"{folder}/{name}"
    before = _read(path)
    if before is not None and holds(name, value, before):
        return
    if not os.path.exists(path):
        _delegate(folder, name.partition(".")[0], root)
    try:
        _write(path, value)
    except FileNotFoundError:
        raise OSError(f"{name} is not something that this host's cgroups can limit") from None
    except OSError as error:
        raise OSError(f"{name} cannot be set to {value}: {error.strerror}") from None
    after = _read(path)
    if after is not None and not holds(name, value, after):
        raise OSError(f"{name} was set to {value} but is {after}")


def _delegate(folder: str, controller: str, root: str) -> None:
    """Enable a controller for the cgroup `folder`: in all its ancestors, from `root` down."""
    above = root
    for part in ["", *os.path.relpath(os.path.dirname(folder), root).split("/")]:
        above = os.path.normpath(f"{above}/{part}")
        if controller not in (_read(f"{above}/{_SUBTREE}") or "").split():
            if controller not in (_read(f"{above}/cgroup.controllers") or "").split():
                raise OSError(f"this host has no cgroup controller {controller}")
            try:
                _write(f"{above}/{_SUBTREE}", f"+{controller}")
            except OSError as error:
                import errno

                kind = BlockingIOError if error.errno == errno.EBUSY else OSError
                raise kind(f"{controller} cannot be enabled in {above}: {error.strerror}") from None


def _killed(top: str) -> str:
    """How many tasks of a cgroup were killed because its memory limit was too small for them."""
    events = dict(line.split(" ", 1) for line in (_read(f"{top}/memory.events") or "").split("\n") if " " in line)
    return events.get("oom_kill", "0")


def _lines(text: str) -> list[tuple[str, str]]:
    """The lines of a record, each with its path. No cgroup has a newline in its name (cgroup_mkdir in the kernel)."""
    found = []
    for line in filter(None, text.split("\n")):
        value, _, below = line.partition("\t")
        found.append((value, below))
    return found


def _within(top: str, below: str) -> str:
    """A path in the cgroup `top`; it is taken from a record that comes from another host."""
    if not below or below.startswith("/") or ".." in below.split("/"):
        raise ValueError(f"{below!r} is not a path in a cgroup")
    return os.path.normpath(f"{top}/{below}")


def _read(path: str) -> str | None:
    """A file's content without the trailing newline; None if it cannot be read."""
    try:
        with open(path, errors="surrogateescape", newline="\n") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
