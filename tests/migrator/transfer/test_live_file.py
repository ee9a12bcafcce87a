# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a file while it is written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from migrator.transfer.live_file import Growing


def test_all_of_it_is_read_however_it_is_written(tmp_path: Path) -> None:
    path, pieces = tmp_path / "pages", [bytes([n]) * (n * 997) for n in range(1, 30)]
    path.touch()
    ended = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(0.001)
        ended.set()

    writer = threading.Thread(target=write)
    read, buffer = b"", memoryview(bytearray(5000))
    with Growing(path, ended.is_set) as reader:
        writer.start()
        while count := reader.readinto(buffer):
            read += buffer[:count]
    writer.join()
    assert read == b"".join(pieces)


def test_what_is_written_just_before_the_end_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.touch()

    def ends_now() -> bool:
        path.write_bytes(b"the last bytes")
        return True

    buffer = memoryview(bytearray(100))
    with Growing(path, ends_now) as reader:
        assert reader.readinto(buffer) == 14
