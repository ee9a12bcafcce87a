# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of a container want to be told of the pressure on its cgroups (psi.rst in the kernel's documents).

systemd and its services write to `memory.pressure` from when on a lack of memory matters to them, and wait for that.
This trigger is part of the open file alone, nothing shows it, and CRIU reopens the file without it (criu/files-reg.c,
up to 4.2.1 at least). Such a file is always ready: who waits for it is told without end of pressure that is not there.
And who waits by epoll(7), where CRIU has entered it by then, would never be told of any: the kernel notes him only
where there is a trigger. So both is done anew before a task runs. Where there is a trigger already CRIU has been cured,
or two descriptors are of one open file: it is left alone.

`at_restore` imports it while a container stands still.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECORD = "pressure-triggers"  # travels beside the images: a line `PID FD TRIGGER`, with ids of the container
RECORD_LIMIT = 16 << 20  # bytes
# What systemd writes unless a unit has MemoryPressureThresholdSec= (MEMORY_PRESSURE_DEFAULT_THRESHOLD_USEC and
# ..._WINDOW_USEC in its psi-util.h). A unit's processes have what is written for it in their environment.
DEFAULT = "some 200000 2000000"
VARIABLE = b"MEMORY_PRESSURE_WRITE="  # in base64 (systemd.exec(5))
_NUMBER_MAX = 10  # digits
ENVIRONMENT_LIMIT = 1 << 20  # bytes; a process may say that any memory of its own is its environment (prctl(2))
_READ_LIMIT = 32 << 20  # bytes of any other file of /proc; a mount or a mapping takes some hundred
_CTL_ADD, _CTL_DEL = 1, 2  # sys/epoll.h
PROC = "/proc"


def record(pids: Iterable[int]) -> str:
    """All triggers of these processes, which stand still."""
    lines = []
    for pid in pids:
        asked = ""
        for fd in _pressure_files(pid):
            try:
                with Borrowed(pid, fd) as file:
                    if file.has_trigger():
                        asked = asked or _asked(pid)
                        lines.append(f"{_inside(pid)} {fd} {asked}\n")
            except OSError:  # it is just being ended
                continue
    return "".join(lines)


def write_again(text: str, pids: Iterable[int]) -> None:
    """Write the triggers of a record for a restored container, whose processes these are; raises OSError, ValueError.

    The record comes from another host.
    """
    wanted: dict[int, list[tuple[int, str]]] = {}
    for line in filter(None, text.split("\n")):
        inside, number, words = line.split(" ", 2)
        wanted.setdefault(int(inside), []).append((int(number), required(words)))
    for pid in pids if wanted else ():
        for fd, trigger in wanted.get(_inside(pid), ()):
            with Borrowed(pid, fd) as file:
                if file.write(trigger):
                    _enter_again(pid, fd, file)


def required(trigger: str) -> str:
    """It, if it is one; raises ValueError."""
    kind, *numbers = trigger.split(" ")
    if kind in ("some", "full") and len(numbers) == 2 and all(
            number.isascii() and number.isdecimal() and len(number) <= _NUMBER_MAX for number in numbers):
        return trigger
    raise ValueError(f"{trigger!r} is not a trigger of pressure")


class Borrowed:
    """A descriptor of another process, held here for a moment; raises OSError, also where it is no file of a cgroup.

    By its name alone it could be any file that a process of the container has opened.
    """

    def __init__(self, pid: int, fd: int) -> None:
        if not _is_of_cgroup(pid, fd):
            raise OSError(errno.EINVAL, f"descriptor {fd} of process {pid} is not of a cgroup")
        self.fd = _borrowed(pid, fd)

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def has_trigger(self) -> bool:
        """Without one it is always ready, with an error (psi_trigger_poll in kernel/sched/psi.c)."""
        import select

        poll = select.poll()
        poll.register(self.fd, select.POLLPRI)
        return not any(event & select.POLLERR for _, event in poll.poll(0))

    def write(self, trigger: str) -> bool:
        """Write a trigger; False where there is one."""
        try:
            os.pwrite(self.fd, trigger.encode() + b"\0", 0)  # the position is that of who has it open
        except OSError as error:
            if error.errno == errno.EBUSY:  # a file has but one, for as long as it is open
                return False
            raise
        return True


def _pressure_files(pid: int) -> Iterator[int]:
    """The descriptors of a process that may have one: those that it may write to, by their names."""
    try:
        names = os.listdir(f"{PROC}/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            # The mode of a link there is that of the descriptor (proc_pid_fd(5)).
            if (os.readlink(f"{PROC}/{pid}/fd/{name}").endswith(".pressure")
                    and os.lstat(f"{PROC}/{pid}/fd/{name}").st_mode & 0o200):
                yield int(name)
        except OSError:
            continue


def _asked(pid: int) -> str:
    """What a service was told to write, by its environment.

    Only where that is plain memory: for other pages the kernel could wait for a server that stands still.
    """
    try:
        fields = _read(f"{PROC}/{pid}/stat").rpartition(b") ")[2].split()
        begin, end = int(fields[47]), int(fields[48])  # env_start and env_end in proc_pid_stat(5)
        if end - begin > ENVIRONMENT_LIMIT or not _is_plain(_read(f"{PROC}/{pid}/maps"), begin, end):
            return DEFAULT
        for variable in _read(f"{PROC}/{pid}/environ", ENVIRONMENT_LIMIT).split(b"\0"):
            if variable.startswith(VARIABLE):
                import binascii

                return required(binascii.a2b_base64(variable[len(VARIABLE):]).rstrip(b"\0\n").decode("ascii"))
    except (OSError, ValueError, IndexError):
        pass
    return DEFAULT


def _is_plain(maps: bytes, begin: int, end: int) -> bool:
    """Whether all of this is in one mapping without a file behind it (proc_pid_maps(5))."""
    for line in maps.splitlines():
        area, _rights, _offset, _device, inode, *_ = line.split()
        first, _, behind = area.partition(b"-")
        if int(first, 16) <= begin <= end <= int(behind, 16):
            return inode == b"0"
    return False


def _enter_again(pid: int, fd: int, file: Borrowed) -> None:
    """Where a process waits for `fd` by epoll, enter that anew: with the same number, and the same data."""
    for name in os.listdir(f"{PROC}/{pid}/fd"):
        if os.readlink(f"{PROC}/{pid}/fd/{name}") != "anon_inode:[eventpoll]":
            continue
        for line in _read(f"{PROC}/{pid}/fdinfo/{name}").splitlines():
            words = line.split()
            if words[:1] == [b"tfd:"] and int(words[1]) == fd:
                _add_again(pid, int(name), fd, file, (int(words[3], 16), int(words[5], 16)))


def _add_again(pid: int, epoll: int, fd: int, file: Borrowed, entry: tuple[int, int]) -> None:
    """epoll(7) knows an entry by its file and its number, so here it has to have that number for a moment."""
    import ctypes
    import fcntl
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    # struct epoll_event (epoll_event(3type)), which has no padding there alone.
    event = struct.pack("=IQ" if os.uname().machine == "x86_64" else "@IQ", *entry)
    low = _borrowed(pid, epoll)
    held = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, fd + 1)
    os.close(low)
    mine = fcntl.fcntl(file.fd, fcntl.F_DUPFD_CLOEXEC, fd + 1)
    before = _kept(fd)
    try:
        os.dup2(mine, fd, inheritable=False)
        for action in (_CTL_DEL, _CTL_ADD):
            if libc.epoll_ctl(held, action, fd, event):
                raise OSError(ctypes.get_errno(), f"epoll_ctl of process {pid}: {os.strerror(ctypes.get_errno())}")
    finally:
        if before >= 0:
            os.dup2(before, fd, inheritable=False)
            os.close(before)
        else:
            os.close(fd)
        os.close(mine)
        os.close(held)


def _kept(fd: int) -> int:
    """A duplicate of a descriptor of ours, -1 where there is none of this number."""
    try:
        return os.dup(fd)
    except OSError:
        return -1


def _borrowed(pid: int, fd: int) -> int:
    from migrator.host import roots

    pidfd = os.pidfd_open(pid)
    try:
        return roots.take(pidfd, fd)
    finally:
        os.close(pidfd)


def _is_of_cgroup(pid: int, fd: int) -> bool:
    """Whether a descriptor is of a cgroup's file, told without asking its file system: a server may stand still."""
    for line in _read(f"{PROC}/{pid}/fdinfo/{fd}").splitlines():
        if line.startswith(b"mnt_id:"):
            mount = line.split()[1]
            for each in _read(f"{PROC}/{pid}/mountinfo").splitlines():
                if each.split(b" ", 1)[0] == mount:
                    return each.partition(b" - ")[2].startswith(b"cgroup2 ")
    return False


def _inside(pid: int) -> int:
    """A process's id in the container; 0 when it has gone."""
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
