# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's command line, its logs, and the processes that it leaves behind."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import log
from migrator.criu import apart, criu_dump
from migrator.errors.convert import from_json
from migrator.errors.memory import DumpFailed, RestoreFailed

RLIMIT = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
DUMP_FAILED = "Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
NO_IPTABLES = """\
Error (criu/util.c:642): execvp("iptables-restore", ...) failed: No such file or directory
Error (criu/util.c:657): exited, status=1
Error (criu/util.c:642): execvp("ip6tables-restore", ...) failed: No such file or directory
Error (criu/util.c:657): exited, status=1
"""

# Logs of dumps and restores by CRIU 4.2.1, and what was wrong.
LOGS = {
    "nothing": ("", RLIMIT + "Warn  (criu/net.c:534): net: The eth0 veth is in an external netns\n"),
    "times": ("Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.", """\
(00.000000) rlimit: RLIMIT_NOFILE unlimited for self
(00.001000) Error (criu/util.c:642): Can't setup RLIMIT_NOFILE for self
(00.042215) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.042332) Error (criu/cr-dump.c:2128): Dumping FAILED.
"""),
    "io_uring": (
        "Error (criu/pie/parasite.c:588): send_fds failed (-22); "
        "Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket; "
        "Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)", RLIMIT + """\
pie: 1: Error (criu/pie/parasite.c:588): send_fds failed (-22)
pie: 1: Close the control socket for writing
Error (criu/parasite-syscall.c:280): Can't retrieve FDs from socket
Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (12/0)
Error (criu/cr-dump.c:1545): Dump files (pid: 703) failed with -1
""" + DUMP_FAILED),
    "vsock": ("Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)", RLIMIT + """\
Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)
Error (criu/cr-dump.c:1545): Dump files (pid: 729) failed with -1
""" + DUMP_FAILED),
    "a nested namespace, and then the network is unlocked": (
        "Error (criu/namespaces.c:460): Can't dump nested uts namespace for 758; "
        "Error (criu/namespaces.c:721): Can't make utsns id", RLIMIT + """\
Error (criu/namespaces.c:460): Can't dump nested uts namespace for 758
Error (criu/namespaces.c:721): Can't make utsns id
iptables-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).
Error (criu/util.c:657): exited, status=1
ip6tables-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).
Error (criu/util.c:657): exited, status=1
""" + DUMP_FAILED),
    "the same without iptables": (
        "Error (criu/namespaces.c:460): Can't dump nested uts namespace for 758; "
        "Error (criu/namespaces.c:721): Can't make utsns id", RLIMIT + NO_IPTABLES + """\
Error (criu/namespaces.c:460): Can't dump nested uts namespace for 758
Error (criu/namespaces.c:721): Can't make utsns id
""" + 4 * NO_IPTABLES + DUMP_FAILED),
    "a watch on a symbolic link": ("Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle", RLIMIT + """\
Warn  (criu/fsnotify.c:281): fsnotify: \tHandle 0xd6:0x13e1 cannot be opened
Warn  (criu/irmap.c:105): irmap: Can't stat /no-such-path: No such file or directory
Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle
Error (criu/cr-dump.c:1545): Dump files (pid: 785) failed with -1
""" + DUMP_FAILED),
    "iptables is what is missing": (
        'Error (criu/util.c:642): execvp("iptables-restore", ...) failed: No such file or directory; '
        'Error (criu/util.c:642): execvp("ip6tables-restore", ...) failed: No such file or directory; '
        "Error (criu/net.c:3436): net: Locking network failed: iptables-restore returned -1. This may be connected to "
        "disabled CONFIG_NETFILTER_XT_MARK kernel build config option.", RLIMIT + NO_IPTABLES + """\
Error (criu/net.c:3436): net: Locking network failed: iptables-restore returned -1. This may be connected to \
disabled CONFIG_NETFILTER_XT_MARK kernel build config option.
""" + 2 * NO_IPTABLES + DUMP_FAILED),
    "a restore": (
        "Error (criu/files-reg.c:2353): Can't open file counter.sh on restore: No such file or directory; "
        "Error (criu/files-reg.c:2267): Can't open file counter.sh: No such file or directory; "
        "Error (criu/files.c:1221): Unable to open fd=10 id=0x3", RLIMIT + """\
Error: ipv4: Address already assigned.
RTNETLINK answers: File exists
     1: Error (criu/files-reg.c:2353): Can't open file counter.sh on restore: No such file or directory
     1: Error (criu/files-reg.c:2267): Can't open file counter.sh: No such file or directory
     1: Error (criu/files.c:1221): Unable to open fd=10 id=0x3
Error (criu/cr-restore.c:2331): Restoring FAILED.
Error (criu/cgroup.c:2055): cg: cgroupd: recv req error: No such file or directory
"""),
    "a bridge": ("Error (criu/net.c:3899): net: Can't add interface vethUt9QlJ to bridge nobr0: No such device", """\
Error (criu/net.c:3899): net: Can't add interface vethUt9QlJ to bridge nobr0: No such device
Error (criu/cr-restore.c:2331): Restoring FAILED.
"""),
    "of several processes": (
        "Error (criu/files-reg.c:2187): Can't open file x: No such file; Error (criu/files-reg.c:1): And another", """\
(00.080000)      7: Error (criu/files-reg.c:1): And another
(00.080000)      7: Error (criu/files-reg.c:2187): Can't open file x: No such file
(00.080100)      9: Error (criu/files-reg.c:1): And another
(00.085000)      Error (criu/cr-restore.c:1494): 9 killed by signal 9: Killed
(00.090000) Error (criu/cr-restore.c:2560): Restoring FAILED.
"""),
    "a consequence is better than nothing": (
        "Error (criu/cr-dump.c:1545): Dump files (pid: 729) failed with -1",
        RLIMIT + "Error (criu/cr-dump.c:1545): Dump files (pid: 729) failed with -1\n" + DUMP_FAILED),
}


@pytest.mark.parametrize(("reason", "text"), LOGS.values(), ids=list(LOGS))
def test_the_reason_in_a_log(tmp_path: Path, reason: str, text: str) -> None:
    log = tmp_path / "dump.log"
    log.write_text(text)
    assert criu_dump.reason(log) == reason


def test_the_last_errors_are_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("".join(f"Error (criu/x.c:{number}): {'long ' * 30}\n" for number in range(100)) + DUMP_FAILED)
    found = criu_dump.reason(log)
    assert "x.c:99" in found and "x.c:97" in found and "x.c:90" not in found
    assert len(found) <= criu_dump.REASON_MAX


@pytest.mark.parametrize(("output", "said"), [
    ("criu: unrecognized option '--log-level'\n\nUsage:\n  criu dump|pre-dump -t PID [<options>]\n",
     "criu: unrecognized option '--log-level'"),
    ("Error (criu/config.c:128): Unsupported configuration file format. Please consult man page criu(8)\n",
     "Error (criu/config.c:128): Unsupported configuration file format. Please consult man page criu(8)"),
    ("anything else\n", "anything else\n"),
])
def test_what_criu_says_when_it_does_not_begin(output: str, said: str) -> None:
    assert criu_dump.complaint(output) == said


def test_an_error_says_on_which_host_its_log_is() -> None:
    host = socket.gethostname()
    for error in (DumpFailed(name="web", reason="x", log="/l"), RestoreFailed(name="web", reason="x", log="/l")):
        assert error.hint == f"The whole log is /l on {host}."
        arrived = from_json(error.to_json(), "other-name-for-it")
        assert arrived.hint == f"other-name-for-it says: {error.hint}", "as the host calls itself"
        older = error.to_json() | {"fields": {"name": "web", "reason": "x", "log": "/l"}}
        assert from_json(older, "hostb").hint == "hostb says: The whole log is /l on hostb."


def test_a_log_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert criu_dump.reason(tmp_path / "dump.log") == ""
    (tmp_path / "dump.log").write_bytes(b"(00.1) Error (x.c:1): \xff\xfe" + b"y" * 5000)
    assert 0 < len(criu_dump.reason(tmp_path / "dump.log")) <= 600


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
    assert criu_dump.processes([tmp_path / "elsewhere", tmp_path / "0badc0de"]) == [dumping.pid]
    assert criu_dump.processes([tmp_path / "0badc0d"]) == []
    assert criu_dump.processes([tmp_path]) == []
    assert criu_dump.processes([]) == []


def test_a_dump_that_is_under_way_is_waited_for(tmp_path: Path, dumping: subprocess.Popen[bytes],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DumpFailed, match=f"process {dumping.pid}"):
        criu_dump.wait_for_dump("web", [tmp_path / "0badc0de"], limit=0.05)
    looks = 0

    def processes(_: object) -> list[int]:
        nonlocal looks
        looks += 1
        if looks == 3:
            dumping.communicate()
        return honest(_)  # type: ignore[arg-type]

    honest = criu_dump.processes
    monkeypatch.setattr(criu_dump, "processes", processes)
    criu_dump.wait_for_dump("web", [tmp_path / "0badc0de"], limit=600)
    assert looks == 3


@pytest.mark.parametrize("status", [0, 1])
def test_a_dump_is_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """It runs code of its own in the tasks: where it takes ever so long, that is said, and it is waited for."""
    os.mkfifo(tmp_path / "end")
    (tmp_path / "criu").write_text(f'read x <"$1"/end\necho ended >"$1"/marks\nexit {status}\n')
    said: list[str] = []

    def warning(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            (tmp_path / "end").write_text("\n")

    monkeypatch.setattr(criu_dump, "DUMP_LIMIT", 0.25)
    monkeypatch.setattr(log, "warning", warning)
    with contextlib.nullcontext() if status == 0 else pytest.raises(DumpFailed):
        criu_dump.dump("web", ["sh", str(tmp_path / "criu"), str(tmp_path)], tmp_path)
    assert (tmp_path / "marks").read_text() == "ended\n"
    assert [text.partition(": ")[0] for text in said[:2]] == [
        f"CRIU has not dumped web within {seconds} seconds" for seconds in ("0.25", "0.5")]


def test_what_ends_its_caller_does_not_end_a_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a limit that it has from there, as of a shell's `ulimit -f`."""
    for name in ("cgroup.procs", "oom_score_adj"):
        (tmp_path / name).touch()
    (tmp_path / "criu").write_text(
        'while [ ! -e "$1"/begin ] && [ "$n" != xxxxxxxxxx ]; do n=x$n; sleep 0.1; done\n'
        'echo $$ $(ulimit -f) $(ulimit -Hf) >"$1"/marks\n')

    def stand(pid: int) -> list[str]:
        (tmp_path / str(pid)).symlink_to(tmp_path)
        trouble = honest(pid, tmp_path, tmp_path)
        (tmp_path / "begin").touch()
        return trouble

    honest = apart.stand
    monkeypatch.setattr(apart, "stand", stand)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        criu_dump.dump("web", ["sh", str(tmp_path / "criu"), str(tmp_path)], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    pid, *limits = (tmp_path / "marks").read_text().split()
    assert limits == ["unlimited", "unlimited"]
    assert ((tmp_path / "cgroup.procs").read_text(), (tmp_path / "oom_score_adj").read_text()) == (pid, "-1000")


def test_only_images_travel(tmp_path: Path) -> None:
    for name in ("core-1.img", "pages-1.img", "dump.log", "stats-dump", "criu.conf", criu_dump.CONSOLE_FILE):
        (tmp_path / name).write_text("")
    assert {path.name for path in criu_dump.image_files(tmp_path)} == {
        "core-1.img", "pages-1.img", criu_dump.CONSOLE_FILE}
