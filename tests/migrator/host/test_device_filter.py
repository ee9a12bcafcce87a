# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that decides which devices a container may use, run here by an interpreter of these few instructions."""

from __future__ import annotations

import struct
import sys

import pytest

from migrator.config import config_reader
from migrator.host import cgroup_limits, device_filter

READ, WRITE, MKNOD = 2, 4, 1
BLOCK, CHAR = 1, 2


def program(text: str) -> bytes:
    limits = cgroup_limits.configured(config_reader.settings(
        "".join(f"lxc.cgroup2.devices.{line}\n" for line in text.split("\n"))))
    return device_filter.program(limits, {"/dev/fuse": ("c", 10, 229)}.__getitem__)


def allows(code: bytes, kind: int, major: int, minor: int, access: int) -> bool:
    """What the kernel does with it (Documentation/bpf/standardization/instruction-set.rst)."""
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = [0] * 11
    position = 0
    while True:
        op, both, offset, imm = struct.unpack_from("=BBhi", code, 8 * position)
        to, source = (both & 15, both >> 4) if sys.byteorder == "little" else (both >> 4, both & 15)
        position += 1
        match op:
            case 0x61:
                registers[to] = context[offset]
            case 0x54:
                registers[to] &= imm
            case 0x74:
                registers[to] >>= imm
            case 0xBC:
                registers[to] = registers[source]
            case 0xB7:
                registers[to] = imm
            case 0x5D:
                position += offset if registers[to] != registers[source] else 0
            case 0x55:
                position += offset if registers[to] != imm else 0
            case 0x95:
                return bool(registers[0])
            case _:
                pytest.fail(f"instruction {op:#x}")


# As common.conf has them.
STOCK = """deny = a
allow = c *:* m
allow = b *:* m
allow = c 1:3 rwm
allow = c 136:* rwm
allow = c 10:200 rw"""


def test_what_lxcs_own_rules_allow() -> None:
    code = program(STOCK)
    assert allows(code, CHAR, 1, 3, READ | WRITE) and allows(code, CHAR, 1, 3, READ)
    assert allows(code, CHAR, 136, 77, READ | WRITE | MKNOD)
    assert allows(code, CHAR, 10, 200, READ | WRITE) and allows(code, BLOCK, 8, 0, MKNOD)
    assert not allows(code, BLOCK, 8, 0, READ) and not allows(code, BLOCK, 8, 0, READ | MKNOD)
    assert not allows(code, BLOCK, 1, 3, READ), "another kind of the same number"
    assert not allows(code, CHAR, 1, 4, READ) and not allows(code, CHAR, 2, 3, READ)
    assert not allows(code, CHAR, 10, 200, READ | MKNOD), "each rule allows as a whole"


@pytest.mark.parametrize("text", ["allow =", "deny = a", f"{STOCK}\nallow = a", f"{STOCK}\nallow =\ndeny ="])
def test_no_program(text: str) -> None:
    """LXC attaches none where no rule follows the last word on all devices."""
    assert program(text) == b""


@pytest.mark.parametrize(("text", "null", "disk"), [
    ("allow = a\ndeny = b 8:* rwm", True, False),  # all but
    ("allow = a\ndeny = b 8:* rwm\nallow = b 8:* rwm", True, True),
    ("deny = b 8:0 rwm", False, False),  # LXC begins with "none", of which it is no exception
    ("deny = a\nallow = c 1:3 rwm\ndeny = c 1:3 rwm\nallow = c 5:0 r", False, False),
    ("deny = a\nallow = c 1:3 rwm\ndeny = c 1:3 r", True, False),  # another rule than the one above
    ("allow = a *:* rwm\nallow = c 1:3 r", True, True),
    ("deny = a\nallow = a 1:3 rwm", True, False),
])
def test_orders(text: str, null: bool, disk: bool) -> None:
    code = program(text)
    assert allows(code, CHAR, 1, 3, READ) is null
    assert allows(code, BLOCK, 8, 0, READ) is disk


def test_a_rule_by_path() -> None:
    code = program("deny = a\nallow = /dev/fuse rw")
    assert allows(code, CHAR, 10, 229, READ | WRITE) and not allows(code, CHAR, 10, 229, MKNOD)


@pytest.mark.parametrize("rule", ["allow = c 1:3", "allow = c 1:3 x", "allow = d 1:3 r", "allow = c 1 r", "deny = all",
                                  "deny = /dev/fuse rw", "allow = /dev/fuse", "allow = c -1:3 r", "allow = c 1:3 rw x"])
def test_rules_that_lxc_refuses(rule: str) -> None:
    with pytest.raises(ValueError, match="not a valid device rule"):
        program(rule)
