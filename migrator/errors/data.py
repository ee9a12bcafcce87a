# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks, snapshots and streams."""

from __future__ import annotations

from migrator.errors import MigratorError


class NoSpace(MigratorError):
    """{where} has {free} free, but {needed} are needed for {what}."""

    status = 50
    cure = "Make room there: migrator cleanup -- and of what has not ended, on its source: migrator rollback NAME"


class SegmentDamaged(MigratorError):
    """Segment {segment} of {file} does not match its digest."""

    status = 51
    cure = "Its disk or memory may be failing. The data must be sent again."


class NotBtrfs(MigratorError):
    """{path} is not on btrfs or is not a subvolume."""

    status = 52
    cure = """Make the container's root file system a subvolume: btrfs subvolume create NEW, then copy with
    cp -a --reflink."""


class SendFailed(MigratorError):
    """btrfs send of {snapshot} failed: {reason}"""

    status = 53


class ReceiveFailed(MigratorError):
    """btrfs receive into {path} failed: {reason}"""

    status = 54
    cure = "The data must be sent again."


class SnapshotFailed(MigratorError):
    """The subvolume {path} could not be {action}: {reason}"""

    status = 55


class ReadFailed(MigratorError):
    """{file} could not be read to be sent: {reason}."""

    status = 56


class WriteFailed(MigratorError):
    """What arrived could not be written to {path}: {reason}."""

    status = 57
    cure = "Look for errors of that disk: dmesg --level=err,warn"


class DiskFull(MigratorError):
    """There was no room left for what had to be written: {reason}."""

    status = 58
    cure = "Make room there, for example with: migrator cleanup"
