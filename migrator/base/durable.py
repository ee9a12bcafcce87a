# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing so that it survives a power cut: a file's contents, and its entry in the directory.

`at_restore` uses this while a container is frozen, so it imports very little.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO


def flush(file: IO[str]) -> None:
    """Flush an open file to disk; raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def replace(temporary: Path, path: Path) -> None:
    """Rename a flushed file to its final name, durably: readers see the old file or the new one. Raises OSError."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: str | Path) -> None:
    """Flush the entries of a directory to disk; raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
