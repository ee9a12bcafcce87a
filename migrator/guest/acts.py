# SPDX-License-Identifier: GPL-2.0-or-later
"""Acts in a running container, each with the rights of its own root: a program of its own does them, within limits.

It forks for each mount namespace, as nobody leaves a user namespace again. Who hangs in there, by a file system that
does not answer for example, is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from migrator.base.run import run
from migrator.guest import contents, drop_in, localtime, mount_calls, own_rights, regular_files

LIMIT = 5.0  # seconds that the acts in one mount namespace may take
LIMIT_ALL = 60.0  # seconds
ANSWER_MAX = 1 << 20  # bytes
REASON_MAX = 300  # characters
TRIES = 100


@dataclasses.dataclass(frozen=True)
class Act:
    """One thing that is changed in a running container."""

    kind: str  # of `_ACTS`
    pid: int  # a process in the mount namespace that it is done in
    namespace: str
    target: str
    options: tuple[str, ...] = ()  # of the mount that is replaced
    device: str = ""  # of the file system whose mount that is, or is to be unmounted


def carry_out(init: int, acts: Sequence[Act]) -> list[tuple[Act, str]]:
    """Do them in their order, those in one mount namespace together; with each why it was not done, "" where it was.

    `init` is the container's first process. Raises CommandFailed and CommandTimeout.
    """
    with open(os.memfd_create("acts"), "w+b") as order:  # noqa: PTH123 -- no disk, which may be full
        order.write(json.dumps({"init": init, "acts": [dataclasses.asdict(act) for act in acts]}).encode())
        order.seek(0)
        done = run([sys.executable, "-I", "-m", __name__], stdin=order, limit=LIMIT_ALL)
    told = json.loads(done.stdout)
    return [(act, str(told.get(str(number), "it was not done"))) for number, act in enumerate(acts)]


# --- in the program -------------------------------------------------------------------------------------------


def _renew(act: Act) -> None:
    """A new tmpfs takes the place of an empty mount in which nothing is open, in one step where the kernel can do that.

    What somebody puts into the old one until then is put into the new one as well. If that fails, the old one is
    mounted again.
    """
    with mount_calls.second(act.target) as old:
        found = _meant(old, act)
        _require_empty(old, "files")
        options = {"source": "tmpfs", "mode": f"{found.st_mode & 0o7777:o}", "uid": str(found.st_uid),
                   "gid": str(found.st_gid), "size": "10%", "nr_inodes": "400k"}
        with mount_calls.new_tmpfs(options) as new:
            mount_calls.require_unused(act.target)
            with _folder(new) as inside:
                mount_calls.forbid(new, act.options)
                is_beneath = mount_calls.attach_beneath(new, act.target)
                _detach(act.target)
                try:
                    if not is_beneath:
                        mount_calls.attach(new, act.target)
                    with _folder(old) as folder:
                        contents.copy(folder, inside, contents.Left())
                except OSError:
                    mount_calls.attach(old, act.target)
                    raise


def _detach(target: str) -> None:
    """Somebody may open something in there for a moment. What is beneath by now can only go along with it.

    If it stays in use, an empty tmpfs stays beneath, where nobody sees it.
    """
    for left in reversed(range(TRIES)):
        try:
            mount_calls.detach(target)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise
        time.sleep(0.01)


def _drop(act: Act) -> None:
    with mount_calls.second(act.target) as mount:
        _meant(mount, act)
        _require_empty(mount, "credentials")
        mount_calls.detach(act.target)
        try:
            _require_empty(mount, "credentials")
        except OSError:  # somebody has just put them there
            mount_calls.attach(mount, act.target)
            raise


def _meant(mount: int, act: Act) -> os.stat_result:
    """Of its root; raises OSError where something else has been mounted there, or over it."""
    found = os.fstat(mount)
    if f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}" != act.device:
        raise OSError(errno.EINVAL, "something else is mounted there")
    return found


@contextlib.contextmanager
def _folder(mount: int) -> Iterator[int]:
    """Its root, opened anew each time: who reads it again may not see what was made since."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        yield folder
    finally:
        os.close(folder)


def _require_empty(mount: int, what: str) -> None:
    with _folder(mount) as folder:
        if os.listdir(folder):  # noqa: PTH208 -- nothing is imported any more
            raise OSError(errno.ENOTEMPTY, f"it holds {what}")


_ACTS: dict[str, Callable[[Act], object]] = {
    "drop": _drop,
    "renew": _renew,
    "copy": lambda _: localtime.make_file(),
    "link": lambda _: localtime.make_link(),
    "drop-in": lambda act: drop_in.make(act.target),
    "no-drop-in": lambda act: drop_in.remove(act.target),
}


def _main() -> None:
    order = json.load(sys.stdin)
    groups: dict[tuple[int, str], list[tuple[int, Act]]] = {}
    for number, each in enumerate(order["acts"]):
        act = Act(**{**each, "options": tuple(each["options"])})
        groups.setdefault((act.pid, act.namespace), []).append((number, act))
    told: dict[str, str] = {}
    for (pid, namespace), acts in groups.items():
        told |= _in_child(pid, namespace, order["init"], acts)
    sys.stdout.write(json.dumps(told))


def _in_child(pid: int, namespace: str, init: int, acts: Sequence[tuple[int, Act]]) -> dict[str, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            for number, reason in _done(pid, namespace, init, acts):
                os.write(writing, f"{json.dumps({str(number): reason})}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    answer = _answer(child, reading)
    told: dict[str, str] = {str(number): f"it was not done within {LIMIT:g} s, or has failed" for number, _ in acts}
    for line in answer.split(b"\n")[:-1]:
        found: Any = json.loads(line)
        told |= found
    return told


def _answer(child: int, reading: int) -> bytes:
    """What it says until it has ended, or its time is up."""
    end, answer = time.monotonic() + LIMIT, b""
    try:
        while len(answer) < ANSWER_MAX and select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (data := os.read(reading, 1 << 16)):
                break
            answer += data
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # a child of ours: nobody else has its id before it has been waited for
    end = time.monotonic() + LIMIT
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


def _done(pid: int, namespace: str, init: int, acts: Sequence[tuple[int, Act]]) -> Iterator[tuple[int, str]]:
    try:
        regular_files.remember()
        own_rights.take(pid, namespace, init)
    except (OSError, ValueError, IndexError) as error:
        yield from ((number, _words(error)) for number, _ in acts)
        return
    for number, act in acts:
        try:
            _ACTS[act.kind](act)
            yield number, ""
        except OSError as error:
            yield number, _words(error)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return "something in it is open"
    return str(error)[:REASON_MAX] or type(error).__name__


if __name__ == "__main__":
    _main()
