# SPDX-License-Identifier: GPL-2.0-or-later
"""A mark on the destination's disk that a container may have run there, made before any of its tasks does.

The journal records that it runs only once it does; a program that is killed between the two, or finds the disk full,
has not recorded it. The mark is in the migration's spool and names the boot (random(4)). It is made while all tasks are
stopped (`at_restore`), so this imports little.
"""

from __future__ import annotations

import os
import time

from migrator.base import durable

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in `at_restore`
    from pathlib import Path

NAME = "let-run"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def mark(spool: Path) -> Path:
    """Where the mark of a migration is."""
    return spool / NAME


def record(path: str) -> None:
    """Make the mark durably, file and name. If this raises OSError, the container must not run."""
    with open(_BOOT_ID) as file:
        boot = file.read()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(boot)
        durable.flush(file)
    durable.sync_folder(os.path.dirname(path))


def record_in_time(path: str, end: float) -> None:
    """As `record`, if the container may be let run until `end` (CLOCK_BOOTTIME); OSError also if that has passed.

    The clock is checked last, because making the mark takes as long as the disk takes. If time is up the mark is
    removed again; if a crash preserves it, it still says only that the container may have run.
    """
    record(path)
    late = time.clock_gettime(time.CLOCK_BOOTTIME) - end
    if late > 0:
        os.unlink(path)
        raise TimeoutError(f"the source's permission had expired {late:.3f} seconds before")


def was(path: Path) -> bool:
    """Whether the container may have run; an incompletely written mark counts too."""
    return path.exists()


def boot(path: Path) -> str:
    """The id of the boot in which it was let run, "" if the mark does not say."""
    return path.read_text(errors="replace").strip()


def drop(path: Path) -> None:
    path.unlink(missing_ok=True)
