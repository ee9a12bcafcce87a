# SPDX-License-Identifier: GPL-2.0-or-later
"""What services have mounted in sandboxes of their own that CRIU cannot restore: by the mounts of a Debian 13 guest."""

from __future__ import annotations

import pytest

from migrator.criu.sandbox_mounts import troubles
from migrator.host.mountinfo import parse_mountinfo
from tests.migrator.sandboxes import LOGIND, OUTSIDE, OWN, RESOLVED


def found(outside: set[str] = OUTSIDE, **nested: str) -> set[tuple[str, str, str]]:
    lines = {name: parse_mountinfo(text) for name, text in nested.items()}
    return {(each.kind, each.namespace, each.line.target) for each in troubles(parse_mountinfo(OWN), lines, outside)}


def test_what_a_stock_guest_has() -> None:
    assert found(logind=LOGIND, resolved=RESOLVED) == {
        ("unsupported", "resolved", "/run/credentials/systemd-resolved.service"),
        ("unreachable", "resolved", "/tmp"),
        ("unreachable", "resolved", "/var/tmp"),
    }


@pytest.mark.parametrize(("mounts", "expected"), [
    ("1 0 0:9 / /a rw - nfs4 server:/x rw\n", "unsupported"),
    ("1 0 0:9 /x /a rw - overlay o rw,lowerdir=/bin\n", "unsupported"),
    ("1 0 0:154 / /a rw - fuse.lxcfs lxcfs rw\n", ""),  # the host has it
    ("1 0 0:154 / /a rw - overlay o rw,lowerdir=/bin\n", ""),
    ("1 0 0:9 /x /a rw - tmpfs none rw\n2 1 0:9 / /b rw - tmpfs none rw\n", ""),
    ("1 0 0:9 /x /a rw - proc proc rw\n", ""),
    ("1 0 0:7 /x /a rw master:5 - tmpfs t rw\n2 0 0:7 /y /b rw master:5 - tmpfs t rw\n3 0 0:7 / /c rw - tmpfs t rw\n",
     ""),  # shared with none: restored one by one
    ("1 0 0:7 /x /a rw shared:5 - tmpfs t rw\n2 0 0:7 /y /b rw shared:5 - tmpfs t rw\n3 0 0:7 / /c rw - tmpfs t rw\n",
     "sharing"),
    ("1 0 0:7 /x /a rw shared:5 - tmpfs t rw\n2 0 0:7 /x/y /b rw shared:5 - tmpfs t rw\n"
     "3 0 0:7 / /c rw - tmpfs t rw\n", ""),
    ("1 0 0:38 /p/memory.pressure /a rw - cgroup2 none rw\n", ""),
    ("nonsense\n", ""),
])
def test_by_criu_s_rules(mounts: str, expected: str) -> None:
    assert {kind for kind, _, _ in found(nested=mounts)} == ({expected} if expected else set())


def test_the_container_s_own_disk_is_bound_though_the_host_has_it_no_more() -> None:
    assert found(set(), nested="1 0 0:206 /s1/rootfs/etc /etc rw - btrfs /dev/loop2 rw\n") == set()
