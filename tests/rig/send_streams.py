# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams of `btrfs send` (fs/btrfs/send.h), written by hand, and received on hostb."""

from __future__ import annotations

import shlex
import struct

from harness.rig import Rig

SUBVOL, SNAPSHOT, MKFILE, MKDIR, SYMLINK, RENAME, SET_XATTR, CLONE, CHMOD, END = 1, 2, 3, 4, 8, 9, 13, 16, 18, 21
UUID, CTRANSID, INO, MODE, XATTR_NAME, XATTR_DATA, PATH, PATH_TO, PATH_LINK = 1, 2, 3, 5, 13, 14, 15, 16, 17


def crc32c(data: bytes) -> int:
    """As the kernel's, without the inversions at begin and end."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def command(kind: int, **attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HH", number, len(value)) + value for number, value in attributes.values())
    header = struct.pack("<IHI", len(body), kind, 0)
    return struct.pack("<IHI", len(body), kind, crc32c(header + body)) + body


RECEIVE = ("import base64, sys\nfrom pathlib import Path\nfrom migrator.host import btrfs\n"
           "from migrator.transfer import received_snapshot\n"
           "stream, target, spool = sys.stdin.buffer.read(), Path('/pool/inside', sys.argv[1]), Path('/pool/spool')\n")
CHECKED, UNCHECKED = "received_snapshot.receive([stream], target, spool)\n", "btrfs.receive([stream], target.parent)\n"


def received(rig: Rig, how: str, file: str, target: str) -> str:
    """What is said when a stream in a file of hostb's is received there."""
    python = shlex.join(["/opt/migrator/venv/bin/python", "-c", RECEIVE + how, target])
    return rig.exec("hostb", "sh", "-c", f"{python} <{file}", check=False).stderr
