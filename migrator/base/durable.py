# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written survives a power cut: a file's text, and the name that it has got in its folder (fsync(2)).

`at_restore` uses it while a container stands still, so its imports are few.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO


def flush(file: IO[str]) -> None:
    """Put on disk what was written into an open file; raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def replace(temporary: Path, path: Path) -> None:
    """Give a file that is on disk its name: whoever reads that sees the old file or the new one. Raises OSError."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: str | Path) -> None:
    """Put on disk which names a folder has; raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
