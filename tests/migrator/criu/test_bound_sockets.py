# SPDX-License-Identifier: GPL-2.0-or-later
"""The UNIX sockets of a dump: CRIU binds and connects them by name, so each name must still lead to its socket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.criu import bound_sockets, image_messages, socket_names
from migrator.criu.bound_sockets import Bound
from migrator.criu.socket_names import View
from migrator.host import roots
from migrator.host.mount_tables import MountTables
from migrator.host.mountinfo import parse_mountinfo
from tests.migrator.criu_images import image, message


def unix(inode: int, name: str | bytes, mount: int = -1, *, folder: str = "", deleted: bool = False,
         connected: bool = False, type_: int = 1) -> bytes:
    """A record of files.img, with all that is required of one, as CRIU writes it."""
    more = [(14, folder)] if folder else []
    on = [] if mount == -1 else [(17, mount << 1)]
    gone = [(15, 1)] if deleted else []
    entry = message((1, 7), (2, inode), (3, type_), (4, 1 if connected else 10), (5, 2), (6, 0), (7, 0), (8, 0),
                    (9, b""), (10, b""), (11, name), (13, message((1, 0o140755), (2, 0), (3, 0))), *more, *gone,
                    (16, 9), *on)
    return message((1, 5), (2, 7), (16, entry))


ENDED = 2**22 + 1  # no process has that id


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


OTHER = message((1, 1), (2, 99), (3, message((1, 99), (6, "/a"))))
KIND_LAST = message((2, 98), (3, message((1, 98), (6, "/b"))), (1, 1))


def made(folder: Path, *records: bytes) -> Path:
    (folder / "files.img").write_bytes(image("files.img", OTHER, KIND_LAST, *records))
    return folder


def test_the_names(tmp_path: Path) -> None:
    """Some are of no path, one is relative, one deleted, of one CRIU could not tell the mount, and one is connected, as
    one for datagrams is not for CRIU.
    """
    made(tmp_path, unix(1, ""), unix(2, b"\0abstract"), unix(3, b"/run/a\0", 12), unix(4, b"b/c\0", 12, folder="/srv"),
         unix(5, b"/d \xff\0x", 0, deleted=True), unix(6, "/e"), unix(7, "/f", 9, connected=True),
         unix(8, "/g", 9, connected=True, type_=2))
    assert bound_sockets.bound(tmp_path) == [
        Bound(3, "/run/a", 12, False, False), Bound(4, "/srv/b/c", 12, False, False, "/srv"),
        Bound(5, "/d \udcff", 0, True, False), Bound(6, "/e", -1, False, False), Bound(7, "/f", 9, False, True),
        Bound(8, "/g", 9, False, False)]
    made(tmp_path, unix(9, b"h\0", 12, folder="/srv", connected=True))
    assert bound_sockets.bound(tmp_path) == [Bound(9, "/srv/h", 12, False, True)], "CRIU does not bind it anew"


NONSENSE = {
    "a name twice": message((1, 5), (2, 7), (16, message((2, 1), (3, 1), (4, 1), (11, "/a"), (11, "/b")))),
    "a socket twice": message((1, 5), (2, 7), (16, message((2, 1), (3, 1), (4, 1), (11, "/a"))), (16, message((2, 1)))),
    "no name": message((1, 5), (2, 7), (16, message((2, 1)))),
    "no number": message((1, 5), (2, 7), (16, message((3, 1), (4, 1), (11, "/a")))),
    "no type": message((1, 5), (2, 7), (16, message((2, 1), (4, 1), (11, "/a")))),
    "no state": message((1, 5), (2, 7), (16, message((2, 1), (3, 1), (11, "/a")))),
    "no folder": unix(1, "a"),
    "a number for a socket": message((1, 5), (2, 7), (16, 3)),
    "a number for a name": message((1, 5), (2, 7), (16, message((2, 1), (3, 1), (4, 1), (11, 3)))),
    "a type further behind": message((2, 7), (1, 5), (16, message((2, 1), (3, 1), (4, 1)))),
}


@pytest.mark.parametrize("record", NONSENSE.values(), ids=NONSENSE)
def test_what_could_mean_something_else_to_criu(tmp_path: Path, record: bytes) -> None:
    with pytest.raises(ValueError, match=r"twice|missing"):
        bound_sockets.bound(made(tmp_path, record))


def test_images_of_an_older_criu(tmp_path: Path) -> None:
    (made(tmp_path) / "unixsk.img").write_bytes(b"")
    with pytest.raises(ValueError, match="from no current CRIU"):
        bound_sockets.bound(tmp_path)
    (tmp_path / "unixsk.img").unlink()
    os.truncate(tmp_path / "files.img", image_messages.FILES_LIMIT + 1)
    with pytest.raises(ValueError, match=r"files\.img"):
        bound_sockets.bound(tmp_path)


# --- in the frozen container itself; here that is this process ---------------------------------------------------


@contextlib.contextmanager
def listening(path: Path) -> Iterator[tuple[int, int]]:
    """A socket that is bound there; its inode and its mount."""
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
        mount = roots.placed(path)[1]
        assert mount is not None
        yield os.fstat(its.fileno()).st_ino, mount


def look(folder: Path, *records: bytes) -> str:
    """Why CRIU must not go by these; "" where it may. One of the processes has ended meanwhile."""
    (folder / "images").mkdir(exist_ok=True)
    before = open_files()
    try:
        bound_sockets.require_here(made(folder / "images", *records), os.getpid(), [os.getpid(), ENDED])
    except PermissionError as error:
        return str(error)
    finally:
        assert open_files() == before
    return ""


def test_a_name_leads_to_its_socket(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    with listening(tmp_path / "b/s") as (inode, mount):
        for name in ("a/s", "b/s", "b/../a/s"):
            assert look(tmp_path, unix(inode, f"{tmp_path}/{name}\0", mount)) == ""
        assert look(tmp_path, unix(inode, "b/s\0", mount, folder=str(tmp_path))) == ""
        assert look(tmp_path, unix(inode, f"{tmp_path}/a/s\0")) == ""
        assert look(tmp_path, unix(inode, b"\0s"), unix(inode, "")) == ""


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder"])
def test_the_folder_that_a_relative_name_begins_in(tmp_path: Path, there: str) -> None:
    """CRIU makes folders again that the name itself has, and goes into this one as it is (chdir in criu/sk-unix.c)."""
    folder = tmp_path / "app"
    (folder / "b").mkdir(parents=True)
    with listening(folder / "b/s") as (inode, mount):
        (folder / "b/s").unlink()
        (folder / "b").rmdir()
        record = unix(inode, "b/s\0", mount, folder=str(folder), deleted=True)
        assert look(tmp_path, record) == ""
        folder.rmdir()
        {"nothing": lambda: None, "a file": folder.touch, "a folder": folder.mkdir}[there]()
        said = "" if there == "a folder" else f"{folder}/b/s, to which a UNIX socket is bound, begins in {folder}, "
        assert look(tmp_path, record).startswith(said)
        assert bool(look(tmp_path, record)) is bool(said)
        assert look(tmp_path, unix(inode, "b/s\0", mount, folder=str(folder), connected=True)) == ""
        whole = unix(inode, f"{folder}/b/s\0", mount, deleted=True)
        assert look(tmp_path, whole) == "", "all of whose folders it makes again"
        assert bool(look(tmp_path, whole, record)) is bool(said)


KINDS: dict[str, dict[str, Any]] = {"listens": {}, "deleted": {"deleted": True}, "connected": {"connected": True}}
ELSE = {"listens": "now leads to something else", "deleted": "now leads to something else",
        "connected": "now leads to another socket"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_leads_to_another_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As one that only root may connect to, or another container's: CRIU removes it, and makes this one's own anew."""
    (tmp_path / "his").mkdir()
    with listening(tmp_path / "his/s") as (inode, mount), listening(tmp_path / "s") as (other, _):
        (tmp_path / "his").rename(tmp_path / "was")
        (tmp_path / "his").symlink_to(".")
        his, its = unix(inode, f"{tmp_path}/his/s\0", mount, **KINDS[kind]), f"{tmp_path}/s\0"
        said = f"{tmp_path}/his/s, to which a UNIX socket is bound, leads to {tmp_path}, and is in {tmp_path}/was"
        assert look(tmp_path, his) == look(tmp_path, his, unix(other, its, mount)) == said
        users(monkeypatch)
        assert "through a symbolic link of a user's to something" in look(tmp_path, his, unix(other, its, mount))


JAILED = """
import os, socket, sys
os.makedirs(sys.argv[1] + "/jail/run")
os.chroot(sys.argv[1] + "/jail")
its = socket.socket(socket.AF_UNIX)
its.bind("/run/s")
print(os.fstat(its.fileno()).st_ino, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", ["nothing", "a file", "one that is made anew"])
def test_who_has_bound_it_had_another_root(tmp_path: Path, kind: str, there: str) -> None:
    """As any user can have one, in a user namespace of his own: CRIU would make or remove one in a folder of root's.

    The test's folder stands for the root of the container.
    """
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen([sys.executable, "-c", JAILED, tmp_path], text=True,
                                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert process.stdout and process.stdin
        stack.callback(process.stdin.close)
        inode, mount = int(process.stdout.readline()), roots.placed(tmp_path)[1]
        assert mount is not None
        more = []
        if there == "one that is made anew":
            other, _ = stack.enter_context(listening(tmp_path / "run/s"))
            more = [unix(other, f"{tmp_path}/run/s\0", mount)]
        elif there == "a file":
            (tmp_path / "run/s").write_text("")
        jailed = unix(inode, f"{tmp_path}/run/s\0", mount, **KINDS[kind])
        with pytest.raises(PermissionError, match=f"leads to {tmp_path}/run, and is in {tmp_path}/jail/run"):
            bound_sockets.require_here(made(tmp_path / "images", *more, jailed), os.getpid(),
                                       [os.getpid(), process.pid])


@pytest.mark.parametrize("kind", KINDS)
def test_roots_link_in_its_place(tmp_path: Path, kind: str) -> None:
    """To the very socket, or CRIU would take the link away for nothing."""
    with listening(tmp_path / "s") as (inode, mount), listening(tmp_path / "t") as (other, _):
        (tmp_path / "s").rename(tmp_path / "was")
        (tmp_path / "s").symlink_to("was")
        record, its = unix(inode, f"{tmp_path}/s\0", mount, **KINDS[kind]), unix(other, f"{tmp_path}/t\0", mount)
        assert look(tmp_path, record) == ""
        (tmp_path / "s").unlink()
        (tmp_path / "s").symlink_to("t")
        assert "leads through a symbolic link to something else" in look(tmp_path, record, its)


@pytest.mark.parametrize("kind", KINDS)
def test_another_socket_in_its_place(tmp_path: Path, kind: str) -> None:
    """As that of a service which was started anew. A socket that nobody of this container has is somebody else's."""
    with listening(tmp_path / "s") as (inode, mount):
        (tmp_path / "s").rename(tmp_path / "was")
        name = f"{tmp_path}/s\0"
        with listening(tmp_path / "s") as (other, _):
            before, said = unix(inode, name, mount, **KINDS[kind]), f"is bound, {ELSE[kind]}"
            assert said in look(tmp_path, before)
            together = look(tmp_path, before, unix(other, name, mount))
            assert said in together if kind == "listens" else together == ""
            for not_anew in ("deleted", "connected"):
                assert said in look(tmp_path, before, unix(other, name, mount, **KINDS[not_anew]))


@pytest.mark.parametrize("kind", KINDS)
def test_over_a_users_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """To the very socket, as where a release is called `current`, and nowhere else; nor to a link that leads there."""
    (tmp_path / "releases").mkdir()
    (tmp_path / "current").symlink_to("releases")
    users(monkeypatch)
    with listening(tmp_path / "current/s") as (inode, mount):
        record = unix(inode, f"{tmp_path}/current/s\0", mount, **KINDS[kind])
        assert look(tmp_path, record) == ""
        (tmp_path / "releases/s").rename(tmp_path / "releases/t")
        (tmp_path / "releases/s").symlink_to("t")
        assert "leads through a symbolic link of a user's to something else" in look(tmp_path, record)
        (tmp_path / "releases/s").unlink()
        assert "leads through a symbolic link of a user's to something else" in look(tmp_path, record)
        (tmp_path / "releases/s").write_text("")
        assert "leads through a symbolic link of a user's to something else" in look(tmp_path, record)


def users(patch: pytest.MonkeyPatch) -> None:
    """Whoever runs this is no root in the container, nor are links root's."""
    patch.setattr(socket_names.View, "of", lambda root, mounts, _: socket_names.View(
        root, {line.id: line for line in mounts}, frozenset([2**31])))


def test_what_is_connected_has_the_name_of_what_has_accepted_it(tmp_path: Path) -> None:
    """Be that gone: nobody listens there, and what is left of it goes."""
    with listening(tmp_path / "s") as (inode, mount):
        name = f"{tmp_path}/s\0"
        assert look(tmp_path, unix(inode, name, mount, connected=True)) == ""
        assert look(tmp_path, *[unix(inode, name, mount, connected=True)] * 9, unix(inode, name, mount)) == ""
        assert "that a process has open" in look(tmp_path, unix(2**32 - 1, name, mount, connected=True))
        (tmp_path / "s").rename(tmp_path / "t")
        (tmp_path / "s").write_text("")
        assert look(tmp_path, unix(inode, name, mount, connected=True)) == ""  # what is no socket CRIU leaves


@pytest.mark.parametrize("folder", [False, True])
def test_what_has_the_name_of_a_deleted_one(tmp_path: Path, folder: bool) -> None:
    """CRIU would call it otherwise for a moment, in which another socket's name may lead into it."""
    with listening(tmp_path / "s") as (inode, mount):
        (tmp_path / "s").unlink()
        record = unix(inode, f"{tmp_path}/s\0", mount, deleted=True)
        assert look(tmp_path, record) == ""
        (tmp_path / "s").mkdir() if folder else (tmp_path / "s").write_text("")
        assert "now leads to something else" in look(tmp_path, record)


def test_where_another_folder_of_the_same_mount_is_bound(tmp_path: Path) -> None:
    """A folder that was bound onto itself since is another mount, and the same files."""
    program = """
import os, socket, sys
from migrator.host import roots
its = socket.socket(socket.AF_UNIX)
its.bind("s")
print(os.fstat(its.fileno()).st_ino, roots.placed("s")[1], flush=True)
os.execvp("mount", ["mount", "-o", "bind", ".", "."]) if not os.fork() else os.wait()
print("bound", flush=True)
sys.stdin.read()
"""
    (tmp_path / "images").mkdir()
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", sys.executable, "-c", program], text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        inode, mount = map(int, process.stdout.readline().split())
        assert process.stdout.readline() == "bound\n"
        made(tmp_path / "images", unix(inode, f"{tmp_path}/s\0", mount))
        bound_sockets.require_here(tmp_path / "images", process.pid, [process.pid])
        process.stdin.close()


def test_what_is_no_socket(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as (inode, mount):
        (tmp_path / "s").rename(tmp_path / "t")
        assert look(tmp_path, unix(inode, f"{tmp_path}/s\0", mount)) == ""  # CRIU binds it there: nobody is in its way
        (tmp_path / "s").write_text("")
        assert "leads to something else" in look(tmp_path, unix(inode, f"{tmp_path}/s\0", mount))


@pytest.mark.parametrize("deleted", [False, True])
def test_a_name_that_leads_out_of_the_container(tmp_path: Path, deleted: bool) -> None:
    (tmp_path / "his").mkdir()
    with listening(tmp_path / "his/s") as (inode, mount):
        (tmp_path / "his").rename(tmp_path / "was")
        (tmp_path / "his").symlink_to(f"/proc/self/fd/121/1/root{tmp_path}/was")
        said = look(tmp_path, unix(inode, f"{tmp_path}/his/s\0", mount, deleted=deleted))
    assert f"{tmp_path}/his/s, to which a UNIX socket is bound, leads through /proc, " in said


def test_whose_socket_it_is_must_be_known(tmp_path: Path) -> None:
    """By the very file that was made when it was bound; one that is just being sent to another process is not known."""
    with listening(tmp_path / "s") as (inode, mount), listening(tmp_path / "t") as (other, _):
        name = f"{tmp_path}/s\0"
        assert "belongs to no socket that a process has open" in look(tmp_path, unix(2**32 - 1, name, mount))
        assert "now leads to something else" in look(tmp_path, unix(other, name, mount))
        assert "is in a mount namespace that cannot be found" in look(tmp_path, unix(inode, name, 2**31 - 1))
        gone = unix(inode, name, 2**31 - 1, connected=True)
        assert look(tmp_path, gone) == "", "its mount was taken away"
        assert "is in a mount namespace that cannot be found" in look(tmp_path, gone, unix(inode, name, 2**31 - 1))


def test_another_file_system_has_a_file_of_that_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each subvolume of one btrfs can, which mountinfo has by the same device."""
    with listening(tmp_path / "s") as (inode, mount):
        its = roots.at(tmp_path / "s")
        monkeypatch.setattr(bound_sockets, "_bound_to", lambda *_: bound_sockets.File(
            roots.Root(its.device + 1, its.inode), str(tmp_path)))
        assert "now leads to something else" in look(tmp_path, unix(inode, f"{tmp_path}/s\0", mount))


def test_what_sockets_are_bound_to(tmp_path: Path) -> None:
    """Renamed, deleted or accepted; not those without a path, nor those of who has ended."""
    with contextlib.ExitStack() as stack:
        path, abstract, unnamed = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        path.bind(str(tmp_path / "s"))
        path.listen()
        abstract.bind(f"\0{tmp_path}")
        unnamed.connect(str(tmp_path / "s"))
        accepted = stack.enter_context(path.accept()[0])
        (tmp_path / "s").rename(tmp_path / "t")
        file = bound_sockets.File(roots.at(tmp_path / "t"), str(tmp_path))
        (tmp_path / "t").unlink()
        numbers = [os.fstat(each.fileno()).st_ino for each in (path, accepted, abstract, unnamed)]
        assert bound_sockets.bound_to(set(numbers), [2**22 + 1, os.getpid()]) == dict.fromkeys(numbers[:2], file)
        assert bound_sockets.bound_to({numbers[1]}, [os.getpid()]) == {numbers[1]: file}
        assert bound_sockets.bound_to(set(numbers), []) == {}


def test_one_socket_of_several(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as (inode, mount), listening(tmp_path / "t") as (other, _):
        right, wrong = unix(inode, f"{tmp_path}/s\0", mount), unix(inode, f"{tmp_path}/t\0", mount)
        assert look(tmp_path, right, unix(other, f"{tmp_path}/t\0", mount)) == ""
        assert f"{tmp_path}/t, " in look(tmp_path, right, wrong, right)


ELSEWHERE = """
import os, socket, sys
os.makedirs(sys.argv[1] + "/run")
here = socket.socket(socket.AF_UNIX)
here.bind(sys.argv[1] + "/run/s")
os.symlink(sys.argv[2], sys.argv[1] + "/astray")
if sys.argv[3]: os.chroot(sys.argv[1])
print(os.fstat(here.fileno()).st_ino, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("chroot", ["", "chrooted"])
def test_in_a_mount_namespace_of_its_own(tmp_path: Path, chroot: str) -> None:
    """As a service has it that is given a /tmp of its own. CRIU goes by the root of that namespace, whatever the
    process has made its own.
    """
    away = tmp_path / "away"
    away.mkdir()
    script = 'mount -t tmpfs none "$1" && exec "$0" -c "$2" "$1" /proc/self/root "$3"'
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, away,
                           ELSEWHERE, chroot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin
        inode = int(process.stdout.readline())
        try:
            # What the process sees of its mounts begins at its root; so the numbers are asked in the namespace.
            seen = bound_sockets._from_the_top(process.pid, MountTables())
            assert fcntl.fcntl(seen[0], fcntl.F_GETFL) & os.O_PATH, "to open it for reading may wait for a server"
            os.close(seen[0])
            (mount,) = (int(line.split()[0]) for line in seen[1].splitlines() if f" {away} " in line)
            (tmp_path / "images").mkdir()
            said = []
            for name in (f"{away}/run/s", f"{away}/astray/s", "/run/s", str(away)):
                made(tmp_path / "images", *[unix(inode, f"{name}\0", mount)] * 2)  # once found, it is known
                before = open_files()
                try:
                    bound_sockets.require_here(tmp_path / "images", os.getpid(), [os.getpid(), process.pid])
                    said.append("")
                except PermissionError as error:
                    said.append(str(error).partition("is bound, ")[2])
                assert open_files() == before
        finally:
            process.stdin.close()
    assert said[0] == "" and "leads through /proc" in said[1]
    assert said[2] == f"leads to /run, and is in {away}/run"  # where nothing is, in the namespace's root
    assert said[3] == f"leads to {tmp_path}, and is in {away}/run"
    assert not list(away.iterdir())  # this program has stayed where it was


def test_each_mount_namespace_is_looked_into_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may have many processes in it, and a container stands still meanwhile."""
    entered: list[int] = []
    honest = bound_sockets._from_the_top

    def enter(pid: int, tables: MountTables) -> tuple[int, str]:
        entered.append(pid)
        return honest(pid, tables)

    monkeypatch.setattr(bound_sockets, "_from_the_top", enter)
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline()
        with listening(tmp_path / "s") as (inode, _), pytest.raises(PermissionError, match="cannot be found"):
            bound_sockets.require_here(made(tmp_path, unix(inode, f"{tmp_path}/s\0", 2**31 - 1)), os.getpid(),
                                       [process.pid, os.getpid(), process.pid])
        process.stdin.close()
    assert entered == [process.pid]


def test_as_many_mount_namespaces_as_a_container_likes() -> None:
    """And as many sockets, none of which is looked for in each of them."""
    line = parse_mountinfo("1 0 0:1 / / rw - tmpfs x rw\n")[0]
    others = iter([View(number, {number: line}, frozenset()) for number in range(20_000)])
    views: dict[int, View] = {}
    begun = time.process_time()
    for number in reversed(range(20_000)):
        view = bound_sockets._of(number, views, others)
        assert view and view.root == number
    assert bound_sockets._of(20_000, views, others) is None
    assert time.process_time() - begun < 5


def test_a_mount_namespace_that_cannot_be_entered() -> None:
    with pytest.raises(PermissionError, match=f"the mount namespace of process {ENDED} cannot be examined"):
        bound_sockets._from_the_top(ENDED, MountTables())


class Entering:
    """In place of libc: what a thread is answered that is to enter a mount namespace."""

    def __init__(self, unshare: int = 0, setns: int = 0) -> None:
        self._unshare, self._setns = unshare, setns
        self.go_on = threading.Event()
        self.go_on.set()

    def unshare(self, _: int) -> int:
        return self._unshare

    def setns(self, *_: int) -> int:
        self.go_on.wait(60)
        return self._setns


@pytest.mark.parametrize("libc", [Entering(unshare=-1), Entering(setns=-1)])
def test_who_has_not_entered_it_does_not_take_his_own_for_it(monkeypatch: pytest.MonkeyPatch, libc: Entering) -> None:
    monkeypatch.setattr(roots, "libc", lambda: libc)
    with pytest.raises(PermissionError, match="cannot be examined"):
        bound_sockets._from_the_top(os.getpid(), MountTables())


def test_a_mount_namespace_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the thread that waits for it keep this program from ending."""
    libc, before = Entering(setns=-1), set(threading.enumerate())
    libc.go_on.clear()
    monkeypatch.setattr(roots, "libc", lambda: libc)
    monkeypatch.setattr(bound_sockets, "LIMIT", 0.1)
    try:
        with pytest.raises(PermissionError, match="cannot be examined"):
            bound_sockets._from_the_top(os.getpid(), MountTables())
        (waiting,) = set(threading.enumerate()) - before
        assert waiting.daemon
    finally:
        libc.go_on.set()
    waiting.join()
