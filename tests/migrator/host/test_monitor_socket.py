# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for a container: only root's monitor is believed, and only a first process that is the container's."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.base import bounded_ask, names
from migrator.copies import ending, no_memory, remains
from migrator.errors.containers import ConfigInvalid, ContainerNotRunning
from migrator.errors.this_host import CommandTimeout
from migrator.host import lxc, monitor_socket, roots
from migrator.record.detail import Still

Listen = Callable[[], socket.socket]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """Listens where the monitor of c1 would."""
    made: list[socket.socket] = []

    def begin() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made[-1].bind(monitor_socket.address("c1", tmp_path))
        made[-1].listen()
        return made[-1]

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lxc.Container:
    """One that runs, by what liblxc says, with us as its first process. Its root file system is ours."""
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "config").touch()
    said = SimpleNamespace(state="RUNNING", init_pid=os.getpid(), get_config_item=lambda _: "/")
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: said))
    monkeypatch.setattr(monitor_socket, "ROOT", os.geteuid())
    return lxc.Container("c1", tmp_path)


def test_addresses() -> None:
    assert monitor_socket.address("c1", Path("/var/lib/lxc")) == b"\0/var/lib/lxc/c1/command"
    longest = "n" * (105 - len("/pool//command"))
    assert monitor_socket.address(longest, Path("/pool")) == f"\0/pool/{longest}/command".encode()
    hashed = monitor_socket.address(longest + "n", Path("/pool"))
    assert hashed == b"\0lxc/%016x/command" % monitor_socket._fnv_1a(f"/pool/{longest}n".encode())


def test_the_hash() -> None:
    """Vectors of the hash's authors."""
    known = {b"": 0xCBF29CE484222325, b"a": 0xAF63DC4C8601EC8C, b"foobar": 0x85944171F73967E8}
    assert {data: monitor_socket._fnv_1a(data) for data in known} == known


def test_the_holder(tmp_path: Path, listen: Listen) -> None:
    assert monitor_socket.holder("c1", tmp_path) is None
    listen()
    assert monitor_socket.holder("c1", tmp_path) == (os.getpid(), os.geteuid())
    assert monitor_socket.holder("c2", tmp_path) is None


def test_one_that_takes_no_connection(tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose it is cannot be told, so nothing is said of the container."""
    monkeypatch.setattr(monitor_socket, "LIMIT", 1)
    listen().listen(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waits:
        waits.connect(monitor_socket.address("c1", tmp_path))
        with pytest.raises(CommandTimeout, match="LXC's monitor of c1"):
            monitor_socket.holder("c1", tmp_path)


def test_roots_monitor_is_believed(container: lxc.Container, listen: Listen) -> None:
    listen()
    assert (container.state, container.init_pid) == ("RUNNING", os.getpid())
    assert not container.is_impersonated()
    assert remains.init_of(container) is not None and no_memory.runs(container, "0badc0de")


def test_a_stranger_is_not(container: lxc.Container, listen: Listen, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is he told anything, as LXC's programs write, and send signals, where they are told."""
    monkeypatch.setattr(monitor_socket, "ROOT", os.geteuid() + 1)
    ran: list[object] = []
    for module in (lxc, no_memory, ending):
        monkeypatch.setattr(module, "run", lambda argv, **_: ran.append(argv))
    listen()
    assert container.state == "STOPPED"
    with pytest.raises(ContainerNotRunning):
        _ = container.cgroup
    assert remains.init_of(container) is None and not no_memory.runs(container, "0badc0de")
    container.tell_frozen()
    container.tell_thawed()
    assert not ending.stop(SimpleNamespace(still=Still(init=(os.getpid(), None))), container, 600)  # type: ignore[arg-type]
    assert ran == []
    said = capsys.readouterr().err
    assert said.count("answers in place of LXC's monitor of c1") == 1, said
    assert f"Process {os.getpid()} of user {os.geteuid()} " in said


def test_nor_one_who_takes_its_place_meanwhile(container: lxc.Container, listen: Listen,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    holders = iter([(1, os.geteuid()), (2, os.geteuid() + 1)])
    monkeypatch.setattr(monitor_socket, "holder", lambda *_: next(holders))
    assert container.state == "STOPPED"


def test_without_a_monitor_nobody_is_asked(container: lxc.Container) -> None:
    assert container.state == "STOPPED"
    with pytest.raises(ContainerNotRunning):
        _ = container.init_pid


def test_a_first_process_that_is_not_the_containers(container: lxc.Container, listen: Listen, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its root file system nor its cgroup says so."""
    listen()
    monkeypatch.setattr(lxc.Container, "rootfs", property(lambda _: tmp_path))
    said = "0::/user.slice\n"
    monkeypatch.setattr(lxc, "cgroup_of", lambda _, name="": lxc.payload_cgroup(said, name))
    with pytest.raises(ContainerNotRunning):
        _ = container.init_pid
    said = "0::/lxc.payload.c1-1/init.scope\n"
    assert (container.init_pid, container.cgroup.name) == (os.getpid(), "lxc.payload.c1-1")


@pytest.mark.parametrize("place", [
    "/lxc.payload/c1", "/lxc.payload.guests/c1", "/lxc.payload", "/lxc.payload.c1x", "/",
])
def test_a_cgroup_that_others_may_be_in_is_never_its_own(container: lxc.Container, listen: Listen, place: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognised by its root file system alone: to freeze or kill all of that cgroup would hit other containers."""
    listen()
    monkeypatch.setattr(lxc.Container, "rootfs", property(lambda _: Path("/")))
    monkeypatch.setattr(lxc, "cgroup_of", lambda _, name="": lxc.payload_cgroup(f"0::{place}\n", name))
    assert container.init_pid == os.getpid()
    with pytest.raises(ConfigInvalid, match="not its own"):
        _ = container.cgroup


def test_its_own_cgroup_in_one_of_a_similar_name() -> None:
    said = "0::/lxc.payload.guests/lxc.payload.c1/lxc.payload.c1/x\n"
    assert lxc.payload_cgroup(said, "c1") == Path("/sys/fs/cgroup/lxc.payload.guests/lxc.payload.c1")


@pytest.mark.parametrize(("name", "cgroup", "is_its"), [
    ("c1", "lxc.payload.c1", True), ("c1", "lxc.payload.c1-12", True), ("c1", "lxc.payload.c12", False),
    ("c1", "lxc.monitor.c1", False), ("c.1", "lxc.payload.cx1", False), ("c1", "lxc.payload.c1-", False),
    ("c1", "lxc.payload.c1-1\n", False), ("c1", "c1", False), ("c1", "xlxc.payload.c1", False),
])
def test_payload_names(name: str, cgroup: str, is_its: bool) -> None:
    assert lxc.is_payload(name, Path("/sys/fs/cgroup", cgroup)) is is_its


def test_credentials_are_the_kernels() -> None:
    """struct ucred: three numbers of four bytes."""
    assert monitor_socket._CREDENTIALS.size == struct.calcsize("3i") == 12


# --- whose monitor a process is -------------------------------------------------------------------------------


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], socket.socket]]:
    """Listens at an address; we count as root."""
    monkeypatch.setattr(monitor_socket, "ROOT", os.geteuid())
    made: list[socket.socket] = []

    def begin(address: bytes) -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made[-1].bind(address)
        made[-1].listen()
        return made[-1]

    yield begin
    for each in made:
        each.close()


Bind = Callable[[bytes], socket.socket]


def is_anothers(pid: int, name: str, lxcpath: Path) -> bool:
    """By what it listens on: that it listens on nothing tells nothing here, be it what process 1 executes or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_socket, "_program", lambda _: "init")
        return not monitor_socket.may_be_its(pid, name, lxcpath)


@pytest.mark.parametrize(("listens", "anothers"), [
    ([], False), (["c1"], False), (["c2"], True), (["o/c1"], True), (["also/c1"], False),
    (["also/c2"], True), (["c2", "c1"], False), (["not a monitor"], False), (["a b /c1"], True),
])
def test_whose_monitor_it_is(tmp_path: Path, bind: Bind, listens: list[str], anothers: bool) -> None:
    """By what it listens on, however LXC's path is spelled there."""
    pool = tmp_path / "p"
    pool.mkdir()
    (tmp_path / "also").symlink_to(pool)
    for each in listens:
        folder, _, name = each.rpartition("/")
        bind(b"\0not a monitor" if each == "not a monitor"
             else monitor_socket.address(name, tmp_path / folder if folder else pool))
    assert len(monitor_socket.address("c1", tmp_path / "also")) < monitor_socket._ROOM, "no hash"
    assert is_anothers(os.getpid(), "c1", pool) is anothers


def test_who_answers_for_it(tmp_path: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing tells he may."""
    bind(b"\0not a monitor")
    assert not monitor_socket.is_its(os.getpid(), "c1", tmp_path)
    assert not monitor_socket.is_its(2**22 + 1, "c1", tmp_path), "it has ended"
    bind(monitor_socket.address("c1", tmp_path))
    assert monitor_socket.is_its(os.getpid(), "c1", tmp_path)
    assert not monitor_socket.is_its(os.getpid(), "c2", tmp_path)
    monkeypatch.setattr(roots, "_PIDFD_GETFD", 2**20)
    assert monitor_socket.is_its(os.getpid(), "c2", tmp_path)


def test_what_may_be_its_monitor(tmp_path: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens for it; else who only waits for what has lost its monitor."""
    programs, uid = {1: "systemd", os.getpid(): "conmon"}, {os.getpid(): 0}
    monkeypatch.setattr(monitor_socket, "_program", programs.__getitem__)
    monkeypatch.setattr(monitor_socket, "status", lambda pid, _: [str(uid[pid]).encode()])

    def may() -> bool:
        return monitor_socket.may_be_its(os.getpid(), "c1", tmp_path)

    assert not may()
    assert monitor_socket.may_be_its(2**22 + 1, "c1", tmp_path), "it has ended"
    uid[os.getpid()] = 1000
    assert may()
    uid[os.getpid()], programs[os.getpid()] = 0, "systemd"
    assert may(), "it is process 1, or a user's service manager that runs as root"
    bind(monitor_socket.address("c2", tmp_path))
    assert not may()
    bind(monitor_socket.address("c1", tmp_path))
    programs[os.getpid()] = "lxc-start"
    assert may()
    monkeypatch.setattr(roots, "_PIDFD_GETFD", 2**20)
    assert monitor_socket.may_be_its(os.getpid(), "c3", tmp_path), "nothing tells"


def test_of_what_program_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert monitor_socket._program(os.getpid()) == Path("/proc/self/exe").resolve().name
    monkeypatch.setattr(os, "readlink", lambda _: "/usr/lib/systemd/systemd (deleted)")
    assert monitor_socket._program(1) == "systemd"


def test_of_a_long_path_the_hash_tells(tmp_path: Path, bind: Bind) -> None:
    long = tmp_path / ("n" * 100)
    bind(monitor_socket.address("c1", long))
    assert not is_anothers(os.getpid(), "c1", long)
    assert is_anothers(os.getpid(), "c2", long)


def test_who_has_ended_answers_for_none() -> None:
    assert not is_anothers(2**22 + 1, "c1", Path("/pool"))
    assert not is_anothers(0, "c1", Path("/pool")), "nor who lives outside of this host's namespace"


# With what is bound first as standard input.
USER = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(eval(sys.argv[1])); s.listen(); print(); input()"


@pytest.mark.parametrize("line", ["x\na b c d e f {inode} @{ours}/c1/command", "x\na b c d e f g @/command"])
def test_no_other_process_has_a_say_in_it(tmp_path: Path, bind: Bind, line: str) -> None:
    """/proc/net/unix has any user's names as they are, with newlines in them."""
    held = bind(monitor_socket.address("c2", tmp_path))
    address = "\0" + line.format(inode=os.fstat(held.fileno()).st_ino, ours=tmp_path)
    with subprocess.Popen([sys.executable, "-c", USER, repr(address[:108].encode())], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as user:
        assert user.stdout is not None and user.stdout.readline() == b"\n"
        assert is_anothers(os.getpid(), "c1", tmp_path)
        held.close()
        assert not is_anothers(os.getpid(), "c1", tmp_path)
        user.communicate(b"\n")


def test_nor_has_a_user_whose_process_waits_for_it(tmp_path: Path, bind: Bind,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service manager of his does for what he may start as root, once its monitor has ended."""
    held = bind(monitor_socket.address("c2", tmp_path))
    with socket.socket(socket.AF_UNIX) as roots:
        roots.connect(held.getsockname())
        accepted, _ = held.accept()
        with accepted:
            assert is_anothers(os.getpid(), "c1", tmp_path)
            held.close()
            assert not is_anothers(os.getpid(), "c1", tmp_path), "it listens no more"
    bind(monitor_socket.address("c2", tmp_path))
    monkeypatch.setattr(monitor_socket, "ROOT", os.geteuid() + 1)
    assert not is_anothers(os.getpid(), "c1", tmp_path)


def test_what_cannot_be_told_is_not_anothers(tmp_path: Path, bind: Bind, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it passes for a start, which is a refusal."""
    bind(monitor_socket.address("c2", tmp_path))
    assert is_anothers(os.getpid(), "c1", tmp_path)
    monkeypatch.setattr(roots, "_PIDFD_GETFD", 2**20)  # a kernel without it; or who may not trace it
    assert not is_anothers(os.getpid(), "c1", tmp_path)


def test_nothing_of_it_stays_open(tmp_path: Path, bind: Bind) -> None:
    bind(monitor_socket.address("c2", tmp_path))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), socket.socket(socket.AF_UNIX):  # which others have, too
        before = set(Path("/proc/self/fd").iterdir())
        assert is_anothers(os.getpid(), "c1", tmp_path)
        # What another test has left open may be closed meanwhile, when its memory is collected.
        assert set(Path("/proc/self/fd").iterdir()) <= before


# --- an LXC path on a file server -----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of which paths it is asked which folder they are."""
    found: list[str] = []
    honest = names.same_path

    def same(one: Path, other: Path) -> bool:
        found.append(str(one))
        return honest(one, other)

    monkeypatch.setattr(monitor_socket, "_paths", bounded_ask.Asking(always=True))
    monkeypatch.setattr(names, "same_path", same)
    return found


def test_only_what_is_spelled_otherwise_is_asked(tmp_path: Path, bind: Bind, asked: list[str]) -> None:
    bind(b"\0" + os.fsencode(f"{tmp_path}//./c1/command"))
    assert not is_anothers(os.getpid(), "c1", tmp_path) and asked == []
    bind(monitor_socket.address("c2", tmp_path / "other"))
    assert is_anothers(os.getpid(), "c3", tmp_path) and asked == []
    bind(monitor_socket.address("c3", tmp_path / "other"))
    assert is_anothers(os.getpid(), "c3", tmp_path) and asked == [str(tmp_path / "other")]


def test_one_that_does_not_answer_may_be_this_one(tmp_path: Path, bind: Bind, asked: list[str],
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    """It is waited for once; and told by its answer, once that has come."""
    honest, back = names.same_path, threading.Event()

    def same(one: Path, other: Path) -> bool:
        assert back.wait(60)
        return honest(one, other)

    monkeypatch.setattr(names, "same_path", same)
    bind(monitor_socket.address("c1", tmp_path / "other"))
    for _ in range(2):
        monkeypatch.setattr(bounded_ask, "LIMIT", 0.3)
        back.clear()
        before = set(threading.enumerate())
        try:
            for _ in range(3):
                assert not is_anothers(os.getpid(), "c1", tmp_path)
            waiting = [*set(threading.enumerate()) - before]
            said = " ".join(capfd.readouterr().err.split())
            assert len(waiting) == 1 and said.count(f"{tmp_path}/other does not respond") == 1
        finally:
            back.set()
        waiting[0].join()
        monkeypatch.setattr(bounded_ask, "LIMIT", 600.0)
        assert is_anothers(os.getpid(), "c1", tmp_path)


def test_a_name_that_is_no_path(tmp_path: Path, bind: Bind) -> None:
    bind(b"\0/a\0b/c1/command")
    assert is_anothers(os.getpid(), "c1", tmp_path)
