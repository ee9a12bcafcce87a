# SPDX-License-Identifier: GPL-2.0-or-later
"""What services have mounted in sandboxes of their own that CRIU cannot restore: by the mounts of a Debian 13 guest."""

from __future__ import annotations

import pytest

from migrator.criu.sandbox_mounts import troubles
from migrator.host.mountinfo import parse_mountinfo

OWN = """\
349 161 0:206 /s1/rootfs / rw,noatime shared:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
350 349 0:212 / /dev rw,relatime shared:156 - tmpfs none rw,size=492k,mode=755
351 349 0:213 / /proc rw,nosuid shared:170 - proc proc rw
399 354 0:38 /lxc.payload.s1 /sys/fs/cgroup rw,nosuid shared:175 - cgroup2 none rw
411 350 0:154 /null /dev/null rw,relatime shared:158 - tmpfs tmpfs rw,mode=755
416 350 0:215 / /dev/pts rw,nosuid shared:163 - devpts devpts rw,gid=100005
418 350 0:215 /0 /dev/console rw,nosuid shared:165 - devpts devpts rw,gid=100005
419 350 0:215 /1 /dev/tty1 rw,nosuid shared:166 - devpts devpts rw,gid=100005
163 349 0:217 / /run rw,nosuid shared:177 - tmpfs tmpfs rw,mode=755
206 349 0:219 / /tmp rw,nosuid shared:180 - tmpfs tmpfs rw
613 163 0:229 / /run/credentials/console-getty.service ro,nosuid shared:292 - ramfs ramfs rw,mode=700
"""
LOGIND = """\
640 610 0:206 /s1/rootfs / ro,nosuid shared:235 master:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
643 641 0:154 /null /dev/null rw,nosuid shared:271 master:158 - tmpfs tmpfs rw,mode=755
648 641 0:215 / /dev/pts rw,nosuid shared:276 master:163 - devpts devpts rw,gid=100005
650 641 0:215 /0 /dev/console rw,nosuid shared:278 master:165 - devpts devpts rw,gid=100005
651 641 0:215 /1 /dev/tty1 rw,nosuid - devpts devpts rw,gid=100005
663 640 0:38 /lxc.payload.s1 /sys/fs/cgroup ro,nosuid shared:287 master:175 - cgroup2 none rw
664 640 0:217 / /run rw,nosuid shared:289 master:177 - tmpfs tmpfs rw,mode=755
667 664 0:217 /systemd/propagate/systemd-logind.service /run/systemd/incoming ro master:177 - tmpfs tmpfs rw,mode=755
671 640 0:228 / /proc rw,nosuid shared:303 - proc proc rw
681 663 0:38 /lxc.payload.s1/a/systemd-logind.service/memory.pressure /sys/m rw shared:288 master:175 - cgroup2 none rw
614 664 0:229 / /run/credentials/console-getty.service ro,nosuid shared:313 master:292 - ramfs ramfs rw,mode=700
"""
RESOLVED = """\
460 218 0:206 /s1/rootfs / ro,nosuid shared:184 master:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
489 460 0:217 / /run rw,nosuid shared:192 master:177 - tmpfs tmpfs rw,mode=755
493 460 0:219 / /tmp rw,nosuid shared:199 master:180 - tmpfs tmpfs rw
495 460 0:223 / /dev ro,nosuid shared:201 - tmpfs tmpfs rw,size=4096k
476 489 0:225 / /run/credentials ro,nosuid shared:194 - tmpfs tmpfs rw,size=4096k
477 476 0:221 / /run/credentials/systemd-resolved.service ro,nosuid shared:195 master:182 - ramfs ramfs rw,mode=700
478 489 0:217 /systemd/propagate/systemd-resolved.service /run/systemd/incoming ro master:177 - tmpfs tmpfs rw,mode=755
480 486 0:214 /fs/bpf /sys/fs/bpf ro,nosuid shared:189 master:173 - sysfs sysfs rw
492 493 0:222 /tmp /tmp rw,nosuid shared:200 - tmpfs tmpfs rw,mode=700
562 460 0:222 /var-tmp /var/tmp rw,nosuid shared:225 - tmpfs tmpfs rw,mode=700
"""
OUTSIDE = {"0:154", "0:38"}


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
