# SPDX-License-Identifier: GPL-2.0-or-later
"""The only way in which programs are started.

Argument lists and never a shell, stdin closed unless a file is given, a minimal environment, a time limit, and a
failure that shows the command in a form that can be pasted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from migrator.base import log, programs
from migrator.errors import Interrupted
from migrator.errors.this_host import CommandFailed, CommandTimeout, ProgramMissing

DEFAULT_LIMIT = 60.0  # seconds
# Errors about a file after which another one of that name in $PATH is tried, as by execvp(3).
_CANNOT_BE_EXECUTED = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELIBBAD, errno.EIO,
                       errno.ESTALE, errno.ETXTBSY}
ERROR_TAIL = 2000  # bytes of a program's output that an error message shows
ERROR_LIMIT = 1 << 20  # bytes of what a program says on stderr that are kept, from its end

# Which Debian package contains a missing program.
PACKAGES = {
    "btrfs": "btrfs-progs",
    "criu": "criu",
    "ip": "iproute2",
    "nft": "nftables",
    "sysctl": "procps",
}


@dataclasses.dataclass(frozen=True)
class Completed:
    argv: tuple[str, ...]
    status: int  # as in subprocess: negative for a signal
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


def shown(argv: Sequence[str | os.PathLike[str]]) -> str:
    """The command in a form that can be pasted into a shell."""
    return shlex.join(os.fspath(a) for a in argv)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of programs: a fixed locale so that their output can be parsed, and nothing private."""
    keep = {key: os.environ[key] for key in ("HOME", "TERM") if key in os.environ}
    return keep | {"PATH": programs.path(), "LC_ALL": "C.UTF-8"} | dict(extra or {})


def outcome(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status}"


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    limit: float = DEFAULT_LIMIT,
    check: bool = True,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    within: Callable[[], None] | None = None,
    groups: Sequence[int] | None = None,
) -> Completed:
    """Run a program to its end.

    `limit` is in seconds. `stdin` and `stdout` take an open file; by default stdin is closed and stdout is captured.
    `within` and `groups` are those of `started`. Raises ProgramMissing, CommandTimeout and, if `check`, CommandFailed.
    """
    begun = time.monotonic()
    with started(argv, stdin=stdin, stdout=stdout, env=env, pass_fds=pass_fds, within=within,
                 groups=groups) as program:
        status = program.wait(limit)
        captured = program.captured()
        error = program.error_output()
        done = Completed(program.argv, status, captured, error, time.monotonic() - begun)
        log.debug(f"{shown(argv)}: {outcome(status)} after {done.seconds * 1000:.0f} ms")
        if check and status != 0:
            raise program.failure(status)
    return done


class Program:
    """A running program; made by `started`."""

    def __init__(self, argv: tuple[str, ...], process: subprocess.Popen[bytes],
                 out: IO[bytes] | None, err: IO[bytes]) -> None:
        self.argv = argv
        self.process = process
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> IO[bytes]:
        """The reading end, if it was started with `stdout=subprocess.PIPE`."""
        if self.process.stdout is None:
            raise ValueError("stdout is not a pipe")
        return self.process.stdout

    @property
    def stdin(self) -> IO[bytes]:
        """The writing end, if it was started with `stdin=subprocess.PIPE`."""
        if self.process.stdin is None:
            raise ValueError("stdin is not a pipe")
        return self.process.stdin

    def wait(self, limit: float) -> int:
        """Its exit status; raises CommandTimeout (and kills its process group) after `limit` seconds."""
        if not self.ends_within(limit):
            self.kill()
            raise CommandTimeout(command=shown(self.argv), limit=f"{limit:g}")
        return self.process.wait()

    def ends_within(self, limit: float) -> bool:
        """Whether it ends within `limit` seconds; if not, it goes on."""
        return _ends_within(self.process, limit)

    def finish(self, limit: float = DEFAULT_LIMIT) -> None:
        """Wait for its end and raise CommandFailed if it failed."""
        status = self.wait(limit)
        if status != 0:
            raise self.failure(status)

    def kill(self) -> None:
        """Kill the program and what it started (it leads a process group of its own)."""
        self.kill_group()
        self.process.wait()

    def kill_group(self) -> None:
        """As `kill`, without waiting for the end. Once it has ended and been reaped, it has no pid any more."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Release its pipes and output files."""
        for file in (self.process.stdin, self.process.stdout, self._out, self._err):
            if file:
                with contextlib.suppress(OSError):
                    file.close()

    def captured(self) -> bytes:
        return _read_back(self._out) if self._out else b""

    def error_output(self) -> bytes:
        return _read_back(self._err, ERROR_LIMIT)

    def failure(self, status: int) -> CommandFailed:
        text = (self.error_output() or self.captured())[-ERROR_TAIL:].decode(errors="replace").strip()
        return CommandFailed(command=shown(self.argv), outcome=outcome(status), output=text or "no output")


@contextlib.contextmanager
def started(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    limit: float | None = None,
    within: Callable[[], None] | None = None,
    groups: Sequence[int] | None = None,
) -> Iterator[Program]:
    """Start a program and yield it while it runs; it is killed if the block is left before it ends.

    With a `limit`, in seconds, it is killed after that and CommandTimeout is raised: whoever feeds it, or reads its
    output, does not wait for ever.

    Output that nobody reads goes to files, never to a pipe, so that a daemon which keeps them open (LXC's monitor does)
    cannot block us. The files are in memory (memfd_create(2)): a container can be thawed even if no disk has space.

    It is started from a thread in which `within`, if given, has been called, and is in whatever namespaces that has put
    the thread. If `within` raises, it is not started. `groups`, if given, replace our supplementary groups.
    """
    start = functools.partial(_start, argv, stdin=stdin, stdout=stdout, env=env, pass_fds=pass_fds, groups=groups)
    program = start() if within is None else _start_within(within, start)
    try:
        with _ended_after(program, limit):
            yield program
    finally:
        if program.process.poll() is None:
            program.kill()
        program.close()


def _start_within(within: Callable[[], None], start: Callable[[], Program]) -> Program:
    from concurrent.futures import ThreadPoolExecutor

    made: list[Program] = []
    starting, given_up = threading.Lock(), threading.Event()

    def work() -> None:
        within()
        with starting:
            if not given_up.is_set():
                made.append(start())

    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
    except Interrupted:  # anywhere in that, even before the pool knows its thread; nobody else knows of the program
        with starting:
            given_up.set()
        for program in made:
            program.kill()
            program.close()
        raise
    return made[0]


def detached(argv: Sequence[str | os.PathLike[str]], *, stdin: int, stdout: int) -> Program:
    """Start a program that may outlive this one: it has a session of its own, and signals sent to ours do not reach it.
    """
    return _start(argv, stdin=stdin, stdout=stdout)


def _start(argv: Sequence[str | os.PathLike[str]], *, stdin: int | IO[bytes] | None, stdout: int | IO[bytes] | None,
           env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = (),
           groups: Sequence[int] | None = None) -> Program:
    # A session of its own is one without our terminal, on which a container's program could type (TIOCSTI).
    words, shall_have = tuple(os.fspath(a) for a in argv), environment(env)
    failed: OSError | None = None
    for file in programs.each_of(words[0], shall_have["PATH"]):
        with contextlib.ExitStack() as unused:
            err = unused.enter_context(_memory_file())
            out = unused.enter_context(_memory_file()) if stdout is None else None
            log.trace(shown(words))
            try:
                process = subprocess.Popen(
                    words,
                    executable=file,
                    stdin=subprocess.DEVNULL if stdin is None else stdin,
                    stdout=out if stdout is None else stdout,
                    stderr=err,
                    env=shall_have,
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    extra_groups=groups,
                )
            except OSError as error:
                if error.errno not in _CANNOT_BE_EXECUTED:
                    raise
                if failed is None or isinstance(failed, FileNotFoundError):
                    failed = error
                continue
            unused.pop_all()
            return Program(words, process, out, err)
    if failed is None or isinstance(failed, FileNotFoundError):
        raise _missing(words[0])
    raise failed


def _missing(program: str) -> ProgramMissing:
    name = Path(program).name
    return ProgramMissing(program=name, package=PACKAGES.get(name, name.split("-")[0]))


@contextlib.contextmanager
def _ended_after(program: Program, limit: float | None) -> Iterator[None]:
    """Kill the program if the block takes longer than `limit` seconds, so that reading or writing there returns.

    Raises CommandTimeout then, whatever the block has made of that.
    """
    if limit is None:
        yield
        return
    late = threading.Event()

    def end() -> None:
        late.set()
        program.kill_group()

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late.is_set() and not isinstance(error, Interrupted):
            raise CommandTimeout(command=shown(program.argv), limit=f"{limit:g}") from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise CommandTimeout(command=shown(program.argv), limit=f"{limit:g}")


def _ends_within(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Wait for a program's end; returns whether it came within `limit` seconds.

    Popen.wait with a timeout polls only every 50 ms (CPython's subprocess.py), for which a frozen container would wait.
    """
    if process.poll() is not None:
        return True
    try:
        pidfd = os.pidfd_open(process.pid)  # still there: nobody else reaps it
    except OSError:  # no free descriptor, for example, which is no reason to end a program
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        return process.returncode is not None
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(min(limit * 1000, 2**31 - 1)))
    finally:
        os.close(pidfd)


def _memory_file() -> IO[bytes]:
    return os.fdopen(os.memfd_create("output", os.MFD_CLOEXEC), "w+b")


def _read_back(file: IO[bytes], most: int | None = None) -> bytes:
    """All of it, or the last `most` bytes: who writes to it could have made it larger than memory, at no cost."""
    file.flush()
    file.seek(max(0, os.fstat(file.fileno()).st_size - most) if most else 0)
    return file.read(most or -1)
