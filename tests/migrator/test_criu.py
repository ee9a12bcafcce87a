# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's command line, its logs, and the processes that it leaves behind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import criu
from migrator.errors import DumpFailed

# From real dumps and restores.
LOGS = {
    "": "(00.000000) Warn  (compel/src/lib/infect.c:129): Unable to interrupt task: 12\n(00.1) Dumping FAILED.\n",
    "Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.": """\
(00.000000) rlimit: RLIMIT_NOFILE unlimited for self
(00.001000) Error (criu/util.c:642): Can't setup RLIMIT_NOFILE for self
(00.042215) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.042332) Error (criu/cr-dump.c:2128): Dumping FAILED.
""",
    "Error (criu/files-reg.c:2187): Can't open file bin/x: No such file; Error (criu/files-reg.c:1): And another": """\
(00.080000)      7: Error (criu/files-reg.c:2187): Can't open file bin/x: No such file
(00.080100)      7: Error (criu/files-reg.c:1): And another
(00.080200)      9: Error (criu/files-reg.c:2187): Can't open file bin/x: No such file
(00.090000) Error (criu/cr-restore.c:2560): Restoring FAILED.
""",
}


@pytest.mark.parametrize("reason", LOGS)
def test_the_reason_in_a_log(tmp_path: Path, reason: str) -> None:
    log = tmp_path / "dump.log"
    log.write_text(LOGS[reason])
    assert criu.reason(log) == reason


def test_a_log_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert criu.reason(tmp_path / "dump.log") == ""
    (tmp_path / "dump.log").write_bytes(b"(00.1) Error (x.c:1): \xff\xfe" + b"y" * 5000)
    assert 0 < len(criu.reason(tmp_path / "dump.log")) <= 600


@pytest.fixture
def dumping(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """CRIU, or a script of that name, with an images folder among its arguments."""
    (tmp_path / "criu").write_text("read x\n")
    command = ["sh", str(tmp_path / "criu"), "dump", "-D", str(tmp_path / "0badc0de")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # the kernel shows the arguments a moment after exec has succeeded
        yield process
        process.communicate()


def test_programs_are_known_by_their_images(tmp_path: Path, dumping: subprocess.Popen[bytes]) -> None:
    assert criu.processes([tmp_path / "elsewhere", tmp_path / "0badc0de"]) == [dumping.pid]
    assert criu.processes([tmp_path / "0badc0d"]) == []
    assert criu.processes([tmp_path]) == []
    assert criu.processes([]) == []


def test_a_dump_that_is_under_way_is_waited_for(tmp_path: Path, dumping: subprocess.Popen[bytes],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu, "DUMP_LIMIT", 0.2)
    with pytest.raises(DumpFailed, match=f"process {dumping.pid}"):
        criu.wait_for_dump("web", [tmp_path / "0badc0de"])
    dumping.communicate()
    criu.wait_for_dump("web", [tmp_path / "0badc0de"])


def test_only_images_travel(tmp_path: Path) -> None:
    for name in ("core-1.img", "pages-1.img", "dump.log", "stats-dump", "criu.conf", criu.CONSOLE_FILE):
        (tmp_path / name).write_text("")
    assert {path.name for path in criu.image_files(tmp_path)} == {"core-1.img", "pages-1.img", criu.CONSOLE_FILE}
