# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks, snapshots and streams."""

from __future__ import annotations

from migrator.errors import MigratorError


class NoSpace(MigratorError):
    """{where} has {free} free, but {needed} is needed for {what}."""

    status = 50
    cure = ("Free up space there: migrator cleanup -- and for a migration that has not ended, on its source: "
            "migrator rollback NAME")


class SegmentDamaged(MigratorError):
    """Segment {segment} of {file} does not match its digest."""

    status = 51
    cure = "The disk or memory of that host may be failing. The data must be sent again."


class NotBtrfs(MigratorError):
    """{path} is not on btrfs or is not a subvolume."""

    status = 52
    cure = """Make the container's root file system a subvolume: btrfs subvolume create NEW, then copy it with cp -a
        --reflink."""


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
    """{file} could not be read for sending: {reason}."""

    status = 56


class WriteFailed(MigratorError):
    """Received data could not be written to {path}: {reason}."""

    status = 57
    cure = "Look for disk errors: dmesg --level=err,warn"


class DiskFull(MigratorError):
    """There was no space left to write what had to be written: {reason}."""

    status = 58
    cure = "Free up space there, for example with: migrator cleanup"
