# SPDX-License-Identifier: GPL-2.0-or-later
"""Change things in a running container with the rights of its own root, from a separate program with time limits.

The program forks once for each mount namespace, because a process cannot leave a user namespace that it has entered. A
child that hangs in there, for example on a file system that does not answer, is killed.
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

LIMIT = 5.0  # seconds allowed for all acts in one mount namespace
LIMIT_ALL = 60.0  # seconds allowed for the whole program
ANSWER_MAX = 1 << 20  # bytes read from one child
REASON_MAX = 300  # characters of the reason why an act failed
TRIES = 100


@dataclasses.dataclass(frozen=True)
class Act:
    """One change to a running container."""

    kind: str  # a key of `_ACTS`
    pid: int  # a process in the mount namespace where it is to be done
    namespace: str  # that namespace as /proc names it; the act is refused if `pid` is in another one by then
    target: str  # path in there
    options: tuple[str, ...] = ()  # of the mount that may be replaced
    device: str = ""  # of the file system that is to be replaced or unmounted, as MAJOR:MINOR


def carry_out(init: int, acts: Sequence[Act]) -> list[tuple[Act, str]]:
    """Carry out acts and return each with the reason why it failed, or "" if it was done.

    Those in one mount namespace are carried out together, otherwise in the order given. `init` is the container's first
    process. Raises CommandFailed and CommandTimeout if the program itself fails.
    """
    with open(os.memfd_create("acts"), "w+b") as order:  # noqa: PTH123 -- needs no disk, which may be full
        order.write(json.dumps({"init": init, "acts": [dataclasses.asdict(act) for act in acts]}).encode())
        order.seek(0)
        done = run([sys.executable, "-I", "-m", __name__], stdin=order, limit=LIMIT_ALL)
    told = json.loads(done.stdout)
    return [(act, str(told.get(str(number), "it was not done"))) for number, act in enumerate(acts)]


# --- in the program -------------------------------------------------------------------------------------------


def _renew(act: Act, *, filled: bool = False) -> None:
    """Replace a mount that nobody has open by a new tmpfs; in one step, if the kernel can do that.

    It must be empty, or with `filled` be one whose contents do not change. Whatever is created in an empty one until
    then is copied to the new one. If that fails, the old one is mounted again. Raises OSError.
    """
    with mount_calls.second(act.target) as old:
        found = _meant(old, act)
        if not filled:
            _require_empty(old, "files")
        options = {"source": "tmpfs", "mode": f"{found.st_mode & 0o7777:o}", "uid": str(found.st_uid),
                   "gid": str(found.st_gid), "size": "10%", "nr_inodes": "400k"}
        with mount_calls.new_tmpfs(options) as new:
            mount_calls.require_unused(act.target)
            with _folder(new) as inside:
                if filled:  # before anybody sees it, and before it is made read-only
                    _copy(old, inside)
                mount_calls.forbid(new, act.options)
                is_beneath = mount_calls.attach_beneath(new, act.target)
                _detach(act.target)
                try:
                    if not is_beneath:
                        mount_calls.attach(new, act.target)
                    if not filled:
                        _copy(old, inside)
                except OSError:
                    mount_calls.attach(old, act.target)
                    raise


def _copy(mount: int, target: int) -> None:
    with _folder(mount) as folder:
        contents.copy(folder, target, contents.Left())


def _detach(target: str) -> None:
    """Unmount the old one; tried repeatedly, since a process may have something in it open for a moment.

    A mount that has been attached beneath it cannot be taken away again by itself. So if the old one stays in use, an
    empty tmpfs remains beneath it, where nobody sees it.
    """
    for left in reversed(range(TRIES)):
        try:
            mount_calls.detach(target)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise
        time.sleep(0.01)


def _credentials(act: Act) -> None:
    """Unmount a mount for credentials if it is empty, else replace it by a tmpfs that holds the same.

    systemd fills such a mount elsewhere, and moves it here, read-only, when it is complete. Of its flags nosymfollow is
    left out: it holds no symlinks, CRIU does not restore that flag, and what another mount hides in a service's
    namespace cannot be given it afterwards (`mount_flags`). Raises OSError, also if the mount is in use.
    """
    with mount_calls.second(act.target) as mount:
        _meant(mount, act)
        if _names(mount):
            _renew(dataclasses.replace(act, options=tuple(set(act.options) - {"nosymfollow"})), filled=True)
            return
        mount_calls.detach(act.target)
        try:
            _require_empty(mount, "credentials")
        except OSError:  # something was put there at the last moment
            mount_calls.attach(mount, act.target)
            raise


def _meant(mount: int, act: Act) -> os.stat_result:
    """Status of a mount's root; raises OSError if it is not the one meant: another may be in its place, or over it."""
    found = os.fstat(mount)
    if f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}" != act.device:
        raise OSError(errno.EINVAL, "something else is mounted there")
    return found


@contextlib.contextmanager
def _folder(mount: int) -> Iterator[int]:
    """The root of a mount, opened anew each time: a directory that is read again may not show what was added since."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        yield folder
    finally:
        os.close(folder)


def _names(mount: int) -> list[str]:
    with _folder(mount) as folder:
        return os.listdir(folder)  # noqa: PTH208 -- pathlib might import something, and nothing can be imported by now


def _require_empty(mount: int, what: str) -> None:
    if _names(mount):
        raise OSError(errno.ENOTEMPTY, f"it holds {what}")


_ACTS: dict[str, Callable[[Act], object]] = {
    "credentials": _credentials,
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
    told: dict[str, str] = {str(number): f"it was not done within {LIMIT:g} s, or failed" for number, _ in acts}
    for line in answer.split(b"\n")[:-1]:
        found: Any = json.loads(line)
        told |= found
    return told


def _answer(child: int, reading: int) -> bytes:
    """What a child writes until it ends or its time is up; it is then killed and waited for."""
    end, answer = time.monotonic() + LIMIT, b""
    try:
        while len(answer) < ANSWER_MAX and select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (data := os.read(reading, 1 << 16)):
                break
            answer += data
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # our own child: its id is not reused before we have waited for it
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
