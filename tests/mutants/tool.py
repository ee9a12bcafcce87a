# SPDX-License-Identifier: GPL-2.0-or-later
"""mutmut with our `operators`, in the copy of the tree that it works on. Started by `python -m tests.mutants` alone.

    tool.py JOBS OUTPUT

What became of each mutant is put into OUTPUT as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

WRITABLE = Path.cwd().parent  # the folder of the copy and of the output
SAID = WRITABLE / "tests.log"  # by the tests of the code as it is, which are to pass
TEMPORARY = Path("/run/tests")  # a tmpfs of our own; and short, as names of sockets are (107 characters, unix(7))


def confine() -> None:
    """Make everything else read-only, in this mount namespace.

    The caller has made namespaces of every kind for this process: a mutant that takes 0 or -1 for a process id, or /
    for a folder, finds nobody there and nothing that it can remove.
    """
    run = ["mount", "--no-mtab"]
    subprocess.run([*run, "--bind", WRITABLE, WRITABLE], check=True)
    for target in _mounts():
        if target != str(WRITABLE) and not target.startswith(("/proc", "/dev/")):
            subprocess.run([*run, "-o", "remount,bind,ro", target], check=True)
    for target in ("/run", "/dev/shm"):
        subprocess.run([*run, "-t", "tmpfs", "-o", "mode=0755", "tmpfs", target], check=True)
    TEMPORARY.mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir(Path.cwd())  # what lies there now
    if main := os.fork():
        _reap_until_the_end_of(main)


def _reap_until_the_end_of(main: int) -> NoReturn:
    """What init does for the processes that lose their parent: tests wait until those are gone."""
    while True:
        pid, status = os.wait()
        if pid == main:
            sys.exit(os.waitstatus_to_exitcode(status))


def _mounts() -> list[str]:
    """Where something is mounted (proc_pid_mountinfo(5))."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted({line.split()[4].encode().decode("unicode_escape") for line in lines})


def main(jobs: str, output: str) -> None:
    confine()
    os.environ["TMPDIR"] = str(TEMPORARY)
    os.environ["PYTHONPATH"] = str(Path.cwd() / "mutants")  # for the programs that tests start
    ours = Path(__file__).parent
    sys.path[:] = [str(ours), *(each for each in sys.path if each != str(ours))]
    importlib.import_module("operators").install(importlib.import_module("where").is_wanted)
    for name in ("explained", "programs"):
        importlib.import_module(name)
    del sys.path[0]
    _adapt()
    program: Any = importlib.import_module("mutmut.__main__")
    program._run((), int(jobs))
    Path(output).write_text(json.dumps(list(_results()), indent=1))


def _adapt() -> None:
    """What mutmut does not know of these tests: they start programs, leave temporary files, and may have to wait."""
    harness: Any = importlib.import_module("mutmut.runners.harness")
    programs: Any = importlib.import_module("programs")
    stats, tests = harness.PytestRunner.run_stats, harness.PytestRunner.run_tests

    def run_stats(self: Any, *, tests: Iterable[str]) -> int:
        Path("mutants/sitecustomize.py").write_text(programs.SITECUSTOMIZE)
        os.environ[programs.CALLED] = str(WRITABLE / "called")
        self._pytest_add_cli_args = [*self._pytest_add_cli_args, "--maxfail=0"]  # all that fail are shown at once
        try:
            with _said():
                return int(stats(self, tests=tests))
        finally:
            del os.environ[programs.CALLED]

    def run_tests(self: Any, *, mutant_name: str | None, tests_: Iterable[str]) -> int:
        """Each mutant has its own folder for temporary files: pytest keeps the last three of them all."""
        _leave_session()
        folder = tempfile.mkdtemp()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        as_it_is = mutant_name is None and os.environ["MUTANT_UNDER_TEST"] == ""
        try:
            with _said() if as_it_is else contextlib.nullcontext(), _no_early_end():
                return int(tests(self, mutant_name=mutant_name, tests=tests_))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    isolation: Any = importlib.import_module("mutmut.workers.isolation")
    isolation.register_timeout = _limit
    harness.PytestRunner.run_stats = run_stats
    harness.PytestRunner.run_tests = lambda self, *, mutant_name, tests: run_tests(
        self, mutant_name=mutant_name, tests_=tests)


@contextlib.contextmanager
def _no_early_end() -> Iterator[None]:
    """A mutant that has the process of the tests end as a child of it should, without a complaint, is noticed."""
    ours, end = os.getpid(), os._exit

    def end_as_failed(status: int) -> NoReturn:
        end(status or (1 if os.getpid() == ours else 0))

    os._exit = end_as_failed
    try:
        yield
    finally:
        os._exit = end


def _limit(pid: int, timeout_s: float) -> None:
    """In place of mutmut's, which counts a mutant as one that hangs, and so as noticed, while the machine is busy."""
    threading.Thread(target=_end_after, args=(os.pidfd_open(pid), pid, timeout_s), daemon=True).start()


def _end_after(fd: int, pid: int, limit: float) -> None:
    """End it once there were `limit` seconds in which neither it nor what it started had to wait for a processor."""
    poll, waits, left, now = select.poll(), dict[Path, float](), limit, time.monotonic()
    poll.register(fd, select.POLLIN)
    while left > 0 and not poll.poll(500):
        before, then = waits, now
        waits, now = _waits(pid), time.monotonic()
        left -= max(0.0, now - then - sum(waited - before.get(task, 0.0) for task, waited in waits.items()))
    if left <= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGXCPU)  # by which mutmut knows it
    os.close(fd)


def _waits(pid: int) -> dict[Path, float]:
    """For how many seconds each thread of a process and its descendants has waited for a processor so far: the second
    number of scheduler/sched-stats.rst in the kernel's documentation. Nothing where the kernel does not count.
    """
    found: dict[Path, float] = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError, IndexError):
            found[task] = int((task / "schedstat").read_text().split()[1]) / 1e9
            for child in (task / "children").read_text().split():
                found |= _waits(int(child))
    return found


def _leave_session() -> None:
    """A mutant that signals its own group does not mean the others. A session has its share of the processors, which
    stays as low as the caller has set it (autogroup in sched(7)).
    """
    share = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):  # as where it leads one, or the kernel has no such shares
        low = share.read_text().split()[-1] if share.exists() else ""
        os.setsid()
        share.write_text(low)


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """mutmut has pytest in a process of its own, and forgets what that says; here it is kept, were it killed too."""
    with SAID.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _results() -> Iterator[dict[str, Any]]:
    explained: Any = importlib.import_module("explained")
    data: Any = importlib.import_module("mutmut.mutation.data")
    apply: Any = importlib.import_module("mutmut.mutation.diff_apply")
    status: Any = importlib.import_module("mutmut.stats").status_by_exit_code
    files: Any = importlib.import_module("mutmut.utils.file_utils")
    for path in sorted(files.walk_mutatable_files()):
        found = data.SourceFileMutationData(path=path)
        found.load()
        for name, code in found.exit_code_by_key.items():
            survived = status[code] not in explained.NOTICED
            yield {"file": str(path), "name": name, "status": status[code],
                   "seconds": found.durations_by_key.get(name),
                   "diff": apply.get_diff_for_mutant(name, path=path) if survived else ""}


if __name__ == "__main__":
    main(*sys.argv[1:])
