# SPDX-License-Identifier: GPL-2.0-or-later
"""Which devices a container may open or create: the program that LXC attached to its cgroup at the start.

In cgroup v2 a BPF program decides that (cgroup-v2.rst in the kernel's documents, "Device controller"). CRIU does not
restore it, and LXC attaches it only at a start. Here it is made from the same rules, as LXC interprets them
(bpf_list_add_device and bpf_program_append_device in liblxc's cgroup2_devices.c), and attached before a task runs.

`lxc-cgroup` would not do, although it takes the same rules: it asks the container's monitor, which answers nobody while
it waits for CRIU (do_restore in liblxc's criu.c), and by then the tasks run. It would also go from "nothing is allowed"
to what is allowed rule by rule.

`at_restore` imports this module while a container is down, for `attach`.
"""

from __future__ import annotations

import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# linux/bpf.h
_PROG_LOAD, _PROG_ATTACH, _PROG_QUERY = 5, 8, 16
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2
_IDS = 64  # programs at one cgroup, the most that the kernel allows (BPF_CGROUP_MAX_PROGS)
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KINDS = {"a": 0, "b": 1, "c": 2}
_JUMP = 5  # the class of an instruction
_ALL = sum(_ACCESS.values())
# The number of bpf(2), for which libc has no wrapper (syscalls(2)).
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "s390x": 351,
            "i686": 357, "armv7l": 386, "armv6l": 386}

Rule = tuple[str, int, int, str]  # type, major, minor (-1 for any), access


def program(settings: Iterable[tuple[str, str]], number: Callable[[str], tuple[str, int, int]]) -> bytes:
    """The instructions of the program for the `devices.*` among settings of `cgroup_limits.configured`.

    b"" if LXC attaches none. `number` returns type, major and minor of a device's path, or raises OSError. Raises
    ValueError for a rule that LXC refuses.
    """
    allows_all, any_rule = False, False
    exceptions: dict[Rule, None] = {}
    for key, value in settings:
        if not key.startswith("devices"):
            continue
        allow, rule = key == "devices.allow", _rule(key, value, number)
        if rule is None:
            allows_all, any_rule = allow, False
            exceptions.clear()
        else:
            any_rule = True
            if allow != allows_all:
                exceptions[rule] = None
            else:
                exceptions.pop(rule, None)
    return _instructions(allows_all, exceptions) if any_rule else b""


def denies(settings: Iterable[tuple[str, str]]) -> bool:
    """Whether LXC attaches a program that begins by denying all devices, for settings as in `program`."""
    forbidden, any_rule = False, False
    for key, value in settings:
        if key.startswith("devices"):
            forbidden, any_rule = (key == "devices.deny", False) if value == "a" else (forbidden, True)
    return forbidden and any_rule


def numbers(path: str) -> tuple[str, int, int]:
    """Type, major and minor of a device of this host; raises OSError, ValueError."""
    import stat

    found = os.stat(path)
    for kind, is_one in (("b", stat.S_ISBLK), ("c", stat.S_ISCHR)):
        if is_one(found.st_mode):
            return kind, os.major(found.st_rdev), os.minor(found.st_rdev)
    raise ValueError(f"{path} is not a device")


def path(key: str, value: str) -> str:
    """The device that a rule of `cgroup_limits.configured` names by its path on the host; "" for any other rule."""
    return value.partition(" ")[0] if key == "devices.allow" and value.startswith("/") else ""


def _rule(key: str, value: str, number: Callable[[str], tuple[str, int, int]]) -> Rule | None:
    """None for "all devices", after which earlier rules no longer count."""
    import re

    if value == "a":
        return None
    access = "([rwm]{3}.*|[rwm]{1,2})"  # LXC does not read what follows the third letter
    if key == "devices.allow" and (by_path := re.fullmatch(rf"(/[^ ]*) +{access}( .*)?", value)):
        return (*number(by_path[1]), by_path[2][:3])
    parts = re.fullmatch(rf"([abc])\s(\*|\d{{1,9}}):(\*|\d{{1,9}})\s{access}", value)
    if not parts:
        raise ValueError(f"lxc.cgroup2.{key} = {value} is not a valid device rule")
    major, minor = (-1 if word == "*" else int(word) for word in (parts[2], parts[3]))
    return parts[1], major, minor, parts[4][:3]


def _instructions(allows_all: bool, exceptions: Iterable[Rule]) -> bytes:
    """A program that returns 1 to allow an access and 0 to deny it. r1 points to a struct bpf_cgroup_dev_ctx."""
    code = [
        _insn(0x61, 2, 1, 0), _insn(0x54, 2, imm=0xFFFF),  # r2: the type
        _insn(0x61, 3, 1, 0), _insn(0x74, 3, imm=16),  # r3: the requested access
        _insn(0x61, 4, 1, 4), _insn(0x61, 5, 1, 8),  # r4, r5: major, minor
    ]
    for kind, major, minor, letters in exceptions:
        mask = sum(_ACCESS[letter] for letter in set(letters))
        # Access beyond the mask, or another type or number: on to the next rule, after the last two instructions.
        tests = [(0xBC, 1, 3, 0), (0x54, 1, 0, mask), (0x5D, 1, 3, 0)] if mask != _ALL else []
        tests += [(0x55, register, 0, value)
                  for register, value in ((2, _KINDS[kind] or -1), (4, major), (5, minor)) if value >= 0]
        for left, (op, to, source, imm) in zip(range(len(tests), 0, -1), tests, strict=True):
            code.append(_insn(op, to, source, left + 1 if op & 7 == _JUMP else 0, imm))
        code += [_insn(0xB7, 0, imm=int(not allows_all)), _insn(0x95)]
        if not tests:  # it covers everything, and the kernel refuses unreachable instructions
            return b"".join(code)
    return b"".join([*code, _insn(0xB7, 0, imm=int(allows_all)), _insn(0x95)])


def _insn(op: int, to: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    """A struct bpf_insn; the order of its two four-bit registers depends on the byte order."""
    registers = to | source << 4 if sys.byteorder == "little" else to << 4 | source
    return struct.pack("=BBhi", op, registers, offset, imm)


def attach(top: str, instructions: bytes) -> None:
    """Attach the program to the cgroup `top` and check that it is there; raises OSError.

    If LXC has attached one already, ours is not: LXC's follows `lxc-cgroup`.
    """
    import ctypes

    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    loaded = -1
    try:
        if _count(folder):
            return
        code = ctypes.create_string_buffer(instructions, len(instructions))
        license_ = ctypes.create_string_buffer(b"GPL")
        loaded = _bpf(_PROG_LOAD, struct.pack(
            "=IIQQIIQII16s", _TYPE_CGROUP_DEVICE, len(instructions) // 8, ctypes.addressof(code),
            ctypes.addressof(license_),
            0, 0, 0, 0, 0, b"migrator"), "load")[0]
        _bpf(_PROG_ATTACH, struct.pack("=IIII", folder, loaded, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI), "attach")
        if not _count(folder):
            raise OSError("the device filter is missing after it was attached")
    finally:
        for descriptor in (folder, loaded):
            if descriptor >= 0:
                os.close(descriptor)


def attached(top: str) -> int:
    """How many device programs a cgroup has of its own; raises OSError."""
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _count(folder)
    finally:
        os.close(folder)


def _count(folder: int) -> int:
    import ctypes

    ids = ctypes.create_string_buffer(4 * _IDS)
    answer = _bpf(_PROG_QUERY, struct.pack(
        "=IIIIQI", folder, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), _IDS), "look for")[1]
    return int(struct.unpack_from("=I", answer, 24)[0])


def _bpf(command: int, attributes: bytes, what: str) -> tuple[int, bytes]:
    """bpf(2) with a union bpf_attr, which the kernel may write to; returns its result and that."""
    import ctypes

    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(f"the number of bpf(2) on {os.uname().machine} is unknown")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, 128)
    status = libc.syscall(number, command, buffer, 128)
    if status < 0:
        raise OSError(f"cannot {what} the device filter: {os.strerror(ctypes.get_errno())}")
    return status, buffer.raw
