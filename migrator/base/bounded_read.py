# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose length someone else decides: sent by another host, or written by programs about it."""

from __future__ import annotations

import os
from pathlib import Path

LOG_LIMIT = 1 << 20  # bytes from the end of a log that are kept and read


def read(path: Path, limit: int) -> bytes:
    """All of a file; raises ValueError if it has more than `limit` bytes, and OSError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    return data


def tail(path: Path, limit: int = LOG_LIMIT) -> str:
    """The last `limit` bytes of a log, from the beginning of a line; raises OSError."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length > limit:
            file.seek(length - limit - 1)
            file.readline(limit)
        return file.read(limit).decode(errors="replace")
