# SPDX-License-Identifier: GPL-2.0-or-later
"""A program in a mount namespace of its own, in which no device is opened; one of the test's stands for the host's.

Nodes can be made by the real root alone: tests/rig/test_stream_devices.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.errors.data import ReceiveFailed
from migrator.host import btrfs, no_devices

TREE = Path(__file__).parents[3]
SCRIPT = """
import json, os, subprocess, sys
from migrator.base.run import started
from migrator.host import no_devices

shown = []
for within in (lambda: None, no_devices.enter):
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    namespace = os.readlink("/proc/self/ns/mnt")
    with started(["sh", "-c", "cat /proc/self/mountinfo; exec head -c 1 /dev/zero"], stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE, within=within) as program:
        said = program.stdout.read().decode()
        status, error = program.wait(60), program.error_output().decode()
    with open("/proc/self/mountinfo") as file, open("/dev/zero", "rb") as zero:
        assert file.read() == before and os.readlink("/proc/self/ns/mnt") == namespace and zero.read(1) == b"\\0"
    shown.append([before, said, status, error])
print(json.dumps(shown))
"""


def test_it_opens_none_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    mounts_and_does = (f"cd {tmp_path}; mount -t tmpfs -o ro,noexec,noatime x a; mount -t tmpfs y b; cd {TREE};"
                       ' exec "$@"')
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", mounts_and_does, "sh",
                           sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    (_, plain, *opened), (before, inside, status, error) = json.loads(said)
    assert opened == [0, ""] and plain.endswith("\0")
    assert status == 1 and "/dev/zero" in error and "Permission denied" in error
    assert [flags | {"nodev"} for _, flags in mounts(before)] == [flags for _, flags in mounts(inside)]
    assert [target for target, _ in mounts(before)] == [target for target, _ in mounts(inside)]
    assert {"ro", "noexec", "noatime", "nodev"} <= dict(mounts(inside))[str(tmp_path / "a")]


def mounts(mountinfo: str) -> list[tuple[str, set[str]]]:
    return [(words[4], set(words[5].split(","))) for words in map(str.split, mountinfo.splitlines())]


def test_nothing_is_received_where_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError(38, "Function not implemented", "/")

    monkeypatch.setattr(no_devices, "enter", fails)
    monkeypatch.setattr(btrfs, "receive_command", lambda folder: ["touch", str(folder / "begun")])
    with pytest.raises(ReceiveFailed, match=r"it could not be kept from devices: .*not implemented"):
        btrfs.receive([], tmp_path)
    assert list(tmp_path.iterdir()) == []
