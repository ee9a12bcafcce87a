# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose length somebody else decides: what another host has sent, and what programs say about it."""

from __future__ import annotations

import os
from pathlib import Path

LOG_LIMIT = 1 << 20  # bytes: what is kept and read of a log, its end


def read(path: Path, limit: int) -> bytes:
    """All of a file; raises ValueError where it has more than `limit` bytes, and OSError."""
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
