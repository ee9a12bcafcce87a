# SPDX-License-Identifier: GPL-2.0-or-later
"""What may not be done on a container's mounts, before and after."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator import mount_flags
from migrator.preflight.mount_facts import parse_mountinfo

BEFORE = r"""
243 76 0:308 /c1/rootfs / rw,noatime shared:60 - btrfs /dev/loop6 rw,subvol=/c1/rootfs
245 243 0:821 / /proc rw,nosuid,nodev,noexec,relatime shared:74 - proc proc rw
254 243 0:67 /usr/lib /lib ro,relatime shared:80 - overlay overlay rw
255 243 0:67 /usr/lib /usr/lib ro,relatime shared:81 - overlay overlay rw
256 243 0:67 /srv /srv/a\040b ro,nosymfollow,nodiratime,relatime - overlay overlay rw
257 256 0:68 / /srv/a\040b rw,nodev,noatime - tmpfs tmpfs rw
""".strip()
AFTER = BEFORE.replace("/lib ro,relatime shared:80", "/lib rw,relatime shared:80").replace("rw,nodev,noatime",
                                                                                          "rw,nosuid,noatime")


def recorded(mountinfo: str) -> dict[str, set[str]]:
    return {target: forbidden for target, (forbidden, _) in mount_flags.mounts(mountinfo).items()}


def test_what_is_forbidden() -> None:
    """Where one is mounted over another, it counts."""
    assert recorded(BEFORE) == {
        "/": set(), "/proc": {"nosuid", "nodev", "noexec"}, "/lib": {"ro"}, "/usr/lib": {"ro"},
        r"/srv/a\040b": {"nodev"}}


def test_what_is_allowed_that_was_not() -> None:
    assert mount_flags.missing(recorded(BEFORE), BEFORE) == {}
    found = mount_flags.missing(recorded(BEFORE), AFTER)
    # MS_RDONLY | MS_RELATIME; MS_NOSUID | MS_NODEV | MS_NOATIME: what is forbidden now stays so.
    assert found == {"/lib": 1 | 1 << 21, r"/srv/a\040b": 2 | 4 | 1024}


def test_what_is_forbidden_now_may_stay_so() -> None:
    assert mount_flags.missing(recorded(AFTER), BEFORE) == {r"/srv/a\040b": 2 | 4 | 1024}
    assert mount_flags.missing({}, BEFORE) == {}


def test_a_record_of_ourselves_asks_for_nothing() -> None:
    record = mount_flags.record([os.getpid(), os.getppid()])
    inside = {line.split(" ")[0] for line in record.splitlines()}
    assert len(inside) == 1, "one mount namespace, by the first process that is in it"
    mount_flags.tighten(record, [os.getpid()])
    mount_flags.tighten("", [os.getpid()])


@pytest.mark.parametrize("record", ["nonsense", "x ro /lib", "1 ro"])
def test_records_that_make_no_sense(record: str) -> None:
    with pytest.raises(ValueError):
        mount_flags.tighten(record, [])


def test_a_mounts_names_are_no_lines(tmp_path: Path) -> None:
    """The kernel writes a newline in octal and leaves alone what else may end a line, as in a tmpfs's source."""
    line = "36 35 0:40 / /x ro,nosuid - tmpfs a\rb\x1cc\u2028d\udcff rw\n"
    assert set(mount_flags.mounts(line)) == {"/x"}
    assert [each.target for each in parse_mountinfo(line)] == ["/x"]
    seen = tmp_path / "mountinfo"
    seen.write_bytes(line.encode(errors="surrogateescape"))
    assert mount_flags._read(str(seen)) == line
