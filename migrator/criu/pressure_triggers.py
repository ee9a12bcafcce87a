# SPDX-License-Identifier: GPL-2.0-or-later
"""Triggers by which processes of a container are told of pressure on its cgroups (accounting/psi.rst of the kernel).

systemd and its services write to `memory.pressure` how severe a lack of memory has to be before they are told, and then
wait for that. Such a trigger belongs to the open file alone, nothing shows it, and CRIU reopens the file without it
(criu/files-reg.c, at least up to 4.2.1). Without a trigger the file is always ready: a process that polls it is told
over and over of pressure that does not exist. One that waits by epoll(7) would never be told of any, not even once the
trigger is back: the kernel registers a waiter only if the file has a trigger at that time, and it had none when CRIU
added it to the epoll. So before any task runs the trigger is written, and the file is added to the epoll again. A file
that has a trigger already is left alone: either CRIU has been fixed, or two descriptors refer to one open file.

`at_restore` imports this module while the container stands still, so it imports little itself.
"""

from __future__ import annotations

import errno
import os

from migrator.criu import mount_flags
from migrator.host import mount_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

RECORD = "pressure-triggers"  # sent with the images: a line `PID FD TRIGGER` for each, with ids of the container
RECORD_LIMIT = 16 << 20  # bytes
# What systemd writes unless a unit sets MemoryPressureThresholdSec= (MEMORY_PRESSURE_DEFAULT_THRESHOLD_USEC and
# ..._WINDOW_USEC in its psi-util.h). A unit's processes are told what to write by an environment variable.
DEFAULT = "some 200000 2000000"
DEFAULT_FULL = "full 200000 2000000"  # irq.pressure takes no other
VARIABLE = b"MEMORY_PRESSURE_WRITE="  # followed by base64 (systemd.exec(5))
_NUMBER_MAX = 10  # digits
_WINDOW_MIN, _WINDOW_MAX = 500_000, 10_000_000  # microseconds (kernel/sched/psi.c; newer ones take shorter windows too)
ENVIRONMENT_LIMIT = 1 << 20  # bytes; a process can declare any of its memory to be its environment (prctl(2))
_READ_LIMIT = 32 << 20  # bytes of any other file in /proc but mountinfo; a mapping takes a few hundred
NOT_TAKEN = (errno.EINVAL, errno.EOPNOTSUPP)  # what the kernel says of a trigger that it does not take
PROC = "/proc"


def record(pids: Iterable[int]) -> str:
    """The record of all triggers of these processes, which stand still."""
    lines, mounts = [], CgroupMounts()
    for pid in pids:
        asked = ""
        for fd in _pressure_files(pid):
            try:
                with Borrowed(pid, fd, mounts) as file:
                    if file.has_trigger():
                        asked = asked or _asked(pid)
                        lines.append(f"{_inside(pid)} {fd} {asked}\n")
            except OSError:  # the process is being killed
                continue
    return "".join(lines)


def write_again(text: str, pids: Iterable[int]) -> str:
    """Write the recorded triggers again; `pids` are the processes of the restored container.

    One that this kernel does not take is replaced by the default one, and left out if it takes none: what its processes
    have been told to ask for is up to the container's users, and must not keep it from running. Nor must an epoll that
    one cannot be added to again. Returns a warning of who is not told any more, "" if all are.

    The record comes from another host. Raises ValueError if it is not valid, and OSError, also if a descriptor that it
    names is not of a cgroup.
    """
    wanted: dict[int, list[tuple[int, str]]] = {}
    for line in filter(None, text.split("\n")):
        inside, number, words = line.split(" ", 2)
        wanted.setdefault(int(inside), []).append((int(number), required(words)))
    mounts, untold = CgroupMounts(), dict[int, str]()  # why, by the process's id in the container
    for pid in pids if wanted else ():
        there = _inside(pid)
        if (its := wanted.get(there)) and (why := _write_all(pid, its, mounts)):
            untold[there] = why
    return _warning(untold)


def _warning(untold: dict[int, str]) -> str:
    """In a few words, however many there are, which is up to the container's users."""
    if not untold:
        return ""
    first, why = next(iter(untold.items()))
    which = f"the process {first} is" if len(untold) == 1 else f"{len(untold)} processes, {first} among them, are"
    return f"{which} not told of pressure any more until restarted: {why}"


def _write_all(pid: int, its: Collection[tuple[int, str]], mounts: CgroupMounts) -> str:
    """Write a process's triggers; returns why it is not told of one any more, "" if of all. Raises OSError."""
    from migrator.criu import epoll_entries

    trouble = unread = ""
    entries: dict[int, list[epoll_entries.Entry]] = {}
    try:
        entries = epoll_entries.read(pid, {fd for fd, _ in its})
    except OSError as error:  # the kernel composes all of an instance in memory at once
        unread = str(error)
    for fd, trigger in its:
        with Borrowed(pid, fd, mounts) as file:
            try:
                if not _write_any(file, (trigger, DEFAULT, DEFAULT_FULL)):
                    continue
            except OSError as error:
                if error.errno not in NOT_TAKEN:
                    raise
                trouble = str(error)
                continue
            trouble = unread or trouble
            for entry in entries.get(fd, ()):
                try:
                    epoll_entries.add_again(pid, fd, file.fd, entry)
                except OSError as error:
                    trouble = str(error)
    return trouble


def _write_any(file: Borrowed, triggers: Iterable[str]) -> bool:
    """Write the first of some triggers that this kernel takes; returns False if there is one already.

    Raises OSError: one of NOT_TAKEN if the kernel takes none of them.
    """
    refused = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    for trigger in triggers:
        try:
            return file.write(trigger)
        except OSError as error:
            if error.errno not in NOT_TAKEN:
                raise
            refused = error
    raise refused


def required(trigger: str) -> str:
    """The trigger, if it is written like one; raises ValueError if not."""
    kind, *numbers = trigger.split(" ")
    if kind in ("some", "full") and len(numbers) == 2 and all(
            number.isascii() and number.isdecimal() and len(number) <= _NUMBER_MAX for number in numbers):
        return trigger
    raise ValueError(f"{trigger!r} is not a pressure trigger")


class Borrowed:
    """A duplicate of a descriptor of another process, for a moment; raises OSError, also if it is not of a cgroup file.

    Judging by its name alone, it could be any file that a process of the container has opened.
    """

    def __init__(self, pid: int, fd: int, mounts: CgroupMounts) -> None:
        from migrator.host import roots

        if not mounts.hold(pid, fd):
            raise OSError(errno.EINVAL, f"descriptor {fd} of process {pid} is not of a cgroup")
        self.fd = roots.borrowed(pid, fd)

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def has_trigger(self) -> bool:
        """Whether it has one; without, poll(2) always reports an error (psi_trigger_poll in kernel/sched/psi.c)."""
        import select

        poll = select.poll()
        poll.register(self.fd, select.POLLPRI)
        return not any(event & select.POLLERR for _, event in poll.poll(0))

    def write(self, trigger: str) -> bool:
        """Write a trigger; returns False if it has one already."""
        try:
            os.pwrite(self.fd, trigger.encode() + b"\0", 0)  # at 0, since the file position is shared with the process
        except OSError as error:
            if error.errno == errno.EBUSY:  # an open file has at most one, until it is closed
                return False
            raise
        return True


def _pressure_files(pid: int) -> Iterator[int]:
    """Descriptors of a process that may have a trigger, judging by their names, and by being open for writing."""
    try:
        names = os.listdir(f"{PROC}/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            # The permissions of a symlink there are how the file was opened (proc_pid_fd(5)).
            if (os.readlink(f"{PROC}/{pid}/fd/{name}").endswith(".pressure")
                    and os.lstat(f"{PROC}/{pid}/fd/{name}").st_mode & 0o200):
                yield int(name)
        except OSError:
            continue


def _asked(pid: int) -> str:
    """The trigger that a process was told to write, by its environment; DEFAULT if it was not.

    The environment is only read if it is plain memory. To read other pages the kernel might have to wait for a file
    server that stands still with the container.
    """
    try:
        fields = _read(f"{PROC}/{pid}/stat").rpartition(b") ")[2].split()
        begin, end = int(fields[47]), int(fields[48])  # env_start and env_end in proc_pid_stat(5)
        if end - begin > ENVIRONMENT_LIMIT or not _is_plain(_read(f"{PROC}/{pid}/maps"), begin, end):
            return DEFAULT
        for variable in _read(f"{PROC}/{pid}/environ", ENVIRONMENT_LIMIT).split(b"\0"):
            if variable.startswith(VARIABLE):
                import binascii

                asked = binascii.a2b_base64(variable[len(VARIABLE):]).rstrip(b"\0\n").decode("ascii")
                threshold, window = map(int, required(asked).split(" ")[1:])
                if 0 < threshold <= window and _WINDOW_MIN <= window <= _WINDOW_MAX:  # otherwise it was not taken
                    return asked
                break
    except (OSError, ValueError, IndexError):
        pass
    return DEFAULT


def _is_plain(maps: bytes, begin: int, end: int) -> bool:
    """Whether this range lies in a single mapping that no file backs (proc_pid_maps(5))."""
    for line in maps.splitlines():
        area, _rights, _offset, _device, inode, *_ = line.split()
        first, _, behind = area.partition(b"-")
        if int(first, 16) <= begin <= end <= int(behind, 16):
            return inode == b"0"
    return False


class CgroupMounts:
    """The mounts of cgroup file systems that processes see, read once for those that see the same.

    A process can have any number of files open whose name is that of a pressure file.
    """

    def __init__(self) -> None:
        self._ids: dict[tuple[object, ...], set[bytes]] = {}

    def hold(self, pid: int, fd: int) -> bool:
        """Whether a descriptor is of a file on one of them.

        The file system is not asked itself: its server may stand still with the container. Raises OSError,
        TooManyMounts.
        """
        for line in _read(f"{PROC}/{pid}/fdinfo/{fd}").splitlines():
            if line.startswith(b"mnt_id:"):
                seen_from = mount_flags.sees(pid)
                if seen_from not in self._ids:
                    seen = mount_tables.read(f"{PROC}/{pid}/mountinfo", mount_tables.RESTORED_LIMIT)
                    self._ids[seen_from] = {
                        each.split(b" ", 1)[0] for each in seen.split(b"\n")
                        if each.partition(b" - ")[2].startswith(b"cgroup2 ")}
                return line.split()[1] in self._ids[seen_from]
        return False


def _inside(pid: int) -> int:
    """A process's id in the container; 0 if it has gone."""
    try:
        lines = _read(f"{PROC}/{pid}/status").split(b"\n")
        return int(next(line for line in lines if line.startswith(b"NSpid:")).split()[-1])
    except (OSError, StopIteration, ValueError):
        return 0


def _read(path: str, limit: int = _READ_LIMIT) -> bytes:
    """All of a file; raises OSError, also if it is larger than `limit` bytes."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"{path} is larger than {limit} bytes")
    return data
