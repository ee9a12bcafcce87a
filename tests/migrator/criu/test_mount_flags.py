# SPDX-License-Identifier: GPL-2.0-or-later
"""What may not be done on a container's mounts, before and after."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from migrator.criu import mount_flags
from migrator.host import mount_tables, roots
from migrator.host.mountinfo import parse_mountinfo

BEFORE = r"""
243 76 0:308 /c1/rootfs / rw,noatime shared:60 - btrfs /dev/loop6 rw,subvol=/c1/rootfs
245 243 0:821 / /proc rw,nosuid,nodev,noexec,relatime shared:74 - proc proc rw
254 243 0:67 /usr/lib /lib ro,relatime shared:80 - overlay overlay rw
255 243 0:67 /usr/lib /usr/lib ro,relatime shared:81 - overlay overlay rw
256 243 0:67 /srv /srv/a\040b ro,nosymfollow,nodiratime,relatime - overlay overlay rw
257 256 0:68 / /srv/a\040b rw,nodev,noatime - tmpfs tmpfs rw
""".strip()
AFTER = BEFORE.replace("/lib ro,relatime shared:80", "/lib rw,relatime shared:80").replace("rw,nodev,noatime",
                                                                                          "rw,nosuid,noatime")


def recorded(mountinfo: str) -> dict[str, list[set[str]]]:
    return {target: [each.forbidden for each in found] for target, found in mount_flags.mounts(mountinfo).items()}


def test_what_is_forbidden() -> None:
    """Where one is mounted over another, from the lowest up."""
    assert recorded(BEFORE) == {
        "/": [set()], "/proc": [{"nosuid", "nodev", "noexec"}], "/lib": [{"ro"}], "/usr/lib": [{"ro"}],
        r"/srv/a\040b": [{"ro", "nosymfollow"}, {"nodev"}]}


def test_what_is_allowed_that_was_not() -> None:
    assert mount_flags.missing(recorded(BEFORE), BEFORE) == {}
    found = mount_flags.missing(recorded(BEFORE), AFTER)
    # MS_RDONLY | MS_RELATIME; MS_NOSUID | MS_NODEV | MS_NOATIME: what is forbidden now stays so.
    assert found == {"/lib": 1 | 1 << 21, r"/srv/a\040b": 2 | 4 | 1024}


def test_what_is_forbidden_now_may_stay_so() -> None:
    assert mount_flags.missing(recorded(AFTER), BEFORE) == {r"/srv/a\040b": 2 | 4 | 1024}
    assert mount_flags.missing({}, BEFORE) == {}


def table(*mounted: str) -> str:
    """Lines of mountinfo, from `ID PARENT TARGET WORDS`."""
    return "".join(f"{id_} {parent} 0:1 / {target} {words} - tmpfs x rw\n"
                   for id_, parent, target, words in (each.split() for each in mounted))


ROOT = "1 0 / rw"


def test_one_below_another_that_allows_more_than_before() -> None:
    """Its root takes the upper one away, and may write to what the host has bound there."""
    before = table(ROOT, "2 1 /srv ro,nosuid", "3 2 /srv rw")
    after = table(ROOT, "2 1 /srv rw,nosuid", "3 2 /srv rw")
    assert mount_flags.missing(recorded(before), before) == {}
    assert mount_flags.missing(recorded(before), after) == {"/srv": None}
    both = table(ROOT, "2 1 /srv nosuid", "3 2 /srv rw")
    assert mount_flags.missing({"/srv": [{"ro"}, {"ro"}]}, both) == {"/srv": None}
    assert mount_flags.missing({"/srv": [{"nosuid"}, {"ro"}]}, both) == {"/srv": 1}


def test_the_order_is_that_of_the_mounts() -> None:
    """As when a mount was moved onto a later one, or the restore has made them in another order."""
    before = table(ROOT, "3 1 /srv ro", "2 3 /srv nosuid")
    assert recorded(before)["/srv"] == [{"ro"}, {"nosuid"}]
    assert mount_flags.missing(recorded(before), table(ROOT, "2 3 /srv nosuid", "3 1 /srv ro")) == {}


def test_the_record_of_an_older_version() -> None:
    """It has the uppermost alone."""
    after = table(ROOT, "2 1 /srv rw", "3 2 /srv rw,relatime")
    assert mount_flags.missing({"/srv": [{"ro"}]}, after) == {"/srv": 1 | 1 << 21}


@pytest.mark.parametrize(("mounted", "visible"), [
    (("2 1 /a rw", "3 1 /ab rw"), "123"),
    (("2 1 /a rw", "3 2 /a rw"), "13"),
    (("2 1 /a/b rw", "3 1 /a rw"), "13"),  # what was mounted there lies below the other
    (("2 1 /a/b rw", "3 1 /a rw", "4 3 /a/b rw"), "134"),
    (("2 1 /a rw", "3 1 / rw"), "3"),
    (("2 1 /a rw", "3 2 /a/b rw", "4 1 / rw", "5 4 /a rw"), "45"),
    (("2 1 /a/b rw", "3 2 /a/b/c rw", "4 1 /a rw"), "14"),
    (("2 1 /a rw", "3 2 /a/b rw", "4 2 /a/b/c rw"), "123"),
])
def test_where_a_path_leads(mounted: tuple[str, ...], visible: str) -> None:
    """Each mount forbids what tells it apart."""
    found = mount_flags.mounts(table(ROOT, *mounted))
    assert sum(map(len, found.values())) == 1 + len(mounted)
    for id_, target in [("1", "/"), *((each.split()[0], each.split()[2]) for each in mounted)]:
        told = table(*(f"{each} {'ro' if each.split()[0] == id_ else ''}".replace(" rw ro", " ro")
                       for each in (ROOT, *mounted)))
        (its,) = (each for each in mount_flags.mounts(told)[target] if each.forbidden)
        assert its.visible is (id_ in visible), (id_, target)


def test_the_kernel_agrees(tmp_path: Path) -> None:
    """Mounts of a namespace of our own: what is in the record leads where it says."""
    script = f"""
        mount --make-rprivate / && cd {tmp_path} && mkdir -p a/b a/c
        mount -t tmpfs -o ro x a/c
        mount -t tmpfs x a && mkdir a/b
        mount -t tmpfs -o nodev x a/b
        mount -t tmpfs -o noexec x a/b
        cat /proc/self/mountinfo
    """
    said = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script],
                          capture_output=True, text=True, check=True).stdout
    found = {target.removeprefix(str(tmp_path)): [(sorted(each.forbidden), each.visible) for each in its]
             for target, its in mount_flags.mounts(said).items() if target.startswith(str(tmp_path))}
    assert found == {"/a/c": [(["ro"], False)], "/a": [([], True)], "/a/b": [(["nodev"], False), (["noexec"], True)]}


def test_a_pile_of_mounts() -> None:
    """As high as the kernel lets a container make one, and no more work than that."""
    pile = table(ROOT, *(f"{number} {number - 1} /a ro" for number in range(2, 50_000)))
    assert [each.visible for each in mount_flags.mounts(pile)["/a"]] == [False] * 49_997 + [True]


def test_a_mount_as_deep_as_its_root_likes() -> None:
    """A folder in a folder, 20,000 times, and something mounted in the last: no list of all of them is made."""
    deep = table(ROOT, "2 1 /srv rw", f"3 2 /srv{'/a' * 20_000} nosuid")
    tracemalloc.start()
    try:
        (its,) = mount_flags.mounts(deep)[f"/srv{'/a' * 20_000}"]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert its.visible and its.forbidden == {"nosuid"}


def test_a_record_has_those_below(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = table(ROOT, "2 1 /srv ro,nosuid", "3 2 /srv rw", "4 1 /x rw").encode()
    monkeypatch.setattr(mount_tables, "read", lambda path, _: {"/proc/7/mountinfo": seen}[path])
    monkeypatch.setattr(mount_flags, "inside", {7: 1}.__getitem__)
    monkeypatch.setattr(mount_flags, "sees", lambda _: "all")
    assert mount_flags.record([7]) == "1 nosuid,ro /srv\n1 - /srv\n"
    mount_flags.tighten(mount_flags.record([7]), [7])
    with pytest.raises(OSError, match=r"^/srv could not be mounted as before, as another mount hides it$"):
        mount_flags.tighten("1 nodev,ro /srv\n1 - /srv\n", [7])


class Container:
    """Init in the first mount namespace; of the second a process that sees all of it, and one in a jail there."""

    FIRST = table("90 49 / rw", "91 90 /lib ro")
    SECOND = table("100 50 / rw", "101 100 /lib ro", "102 100 /usr/lib ro", "103 100 /jail rw")
    JAIL = table("103 100 / rw")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, mount_ids: bool = True) -> None:
        self.seen = {1000: self.FIRST, 1001: self.SECOND, 1002: self.JAIL, 1003: self.SECOND}
        self.read: list[int] = []
        monkeypatch.setattr(mount_tables, "read", self._read)
        monkeypatch.setattr(mount_flags, "inside", lambda pid: pid - 999)
        monkeypatch.setattr(os, "readlink", lambda path: "mnt:[1]" if path == "/proc/1000/ns/mnt" else "mnt:[2]")
        places = {1000: 90, 1001: 100, 1002: 103, 1003: 100}  # which a bind of a folder over itself tells apart alone
        monkeypatch.setattr(roots, "mounted", lambda pid: (roots.Root(30, 256), places[pid] if mount_ids else None))

    def _read(self, path: str, _: int) -> bytes:
        pid = int(path.split("/")[2])
        self.read.append(pid)
        return self.seen[pid].encode()


@pytest.mark.parametrize("order", [(1000, 1001, 1002, 1003), (1000, 1002, 1001, 1003), (1002, 1003, 1000, 1001)])
def test_a_process_in_a_jail_hides_nothing(monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]) -> None:
    """It sees none of the mounts that CRIU restores, as another process of its namespace does."""
    container = Container(monkeypatch)
    record = mount_flags.record(order)
    whole = 4 if order[0] == 1002 else 2
    assert sorted(record.splitlines()) == ["1 ro /lib", f"{whole} ro /lib", f"{whole} ro /usr/lib"]
    assert len(container.read) == 3, "one for each root in each namespace, however many processes there are"
    container.seen[1001] = container.seen[1003] = Container.SECOND.replace("/usr/lib ro", "/usr/lib rw")
    mounted: list[tuple[int, dict[str, int]]] = []
    monkeypatch.setattr(mount_flags, "change", lambda pid, found: mounted.append((pid, found)))
    with pytest.raises(OSError, match=r"^/usr/lib could not be mounted as before$"):
        mount_flags.tighten(record, sorted(order))
    assert mounted == [(whole + 999, {"/usr/lib": 1 | mount_flags.REMOUNT})]


def test_a_kernel_that_tells_no_mounts_id(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container(monkeypatch, mount_ids=False)
    mount_flags.record([1000, 1000, 1002, 1001, 1003])
    assert container.read == [1000, 1002, 1001, 1003]


def test_no_more_is_read_than_a_destination_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container(monkeypatch)
    limit = len(mount_flags.record([1000, 1001])) - 1
    monkeypatch.setattr(mount_flags, "RECORD_LIMIT", limit)
    container.read.clear()
    assert len(mount_flags.record([1000, 1001, 1002, 1003])) == limit + 1
    assert container.read == [1000, 1001]


# In a folder of its own mount namespace, with a process in each of two jails there and one in none.
JAILED = """
import os, subprocess, sys
from migrator.criu import mount_flags
here = sys.argv[1]
def sh(script):
    subprocess.run(["sh", "-ec", script], cwd=here, check=True)
sh("mount --make-rprivate /; mkdir lib low high; mount -t tmpfs -o ro x lib; mount -t tmpfs -o ro,nosuid x low;"
   "mount --bind . high; mkdir high/in; mount -t tmpfs -o ro,noexec x high/in")
(their, end), pids = os.pipe(), []
for root in (f"{here}/high", f"{here}/low", "/"):
    ready, chrooted = os.pipe()
    pids.append(os.fork())
    if not pids[-1]:
        os.close(end)
        os.chroot(root)
        os.write(chrooted, b"x")
        os.read(their, 1)
        os._exit(0)
    os.read(ready, 1)
def forbidden():
    with open("/proc/self/mountinfo") as file:
        return sorted((target.replace(here, ""), *sorted(each.forbidden)) for target, found
                      in mount_flags.mounts(file.read()).items() for each in found if here in target or target == "/")
record, before = mount_flags.record(pids), forbidden()
sh("for each in lib low high/in; do mount -o remount,bind,rw,suid,exec $each; done")
loose = forbidden()
mount_flags.tighten(record, pids)
print([line for line in record.split("\\n") if line.startswith((f"{pids[0]} ", f"{pids[1]} "))] ==
      [f"{pids[0]} noexec,ro /in", f"{pids[1]} nosuid,ro /"])
print(loose != before == forbidden(), before)
"""


def test_the_kernel_agrees_on_jails(tmp_path: Path) -> None:
    """What a process sees from its root is found again from there, and nothing else is mounted in another way."""
    said = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", JAILED,
                           str(tmp_path)], capture_output=True, text=True, check=False)
    assert said.stderr == ""
    as_told, as_before = said.stdout.splitlines()
    assert as_told == "True"
    assert as_before.startswith("True [('/',), ('/high',), ('/high/in', 'noexec', 'ro'), ('/lib', 'ro')"), as_before


def test_a_record_of_ourselves_asks_for_nothing() -> None:
    record = mount_flags.record([os.getpid(), os.getppid()])
    inside = {line.split(" ")[0] for line in record.splitlines()}
    assert len(inside) == 1, "one mount namespace, by the first process that is in it"
    mount_flags.tighten(record, [os.getpid()])
    mount_flags.tighten("", [os.getpid()])


@pytest.mark.parametrize("record", ["nonsense", "x ro /lib", "1 ro"])
def test_records_that_make_no_sense(record: str) -> None:
    with pytest.raises(ValueError):
        mount_flags.tighten(record, [])


def test_a_mounts_names_are_no_lines(tmp_path: Path) -> None:
    """The kernel writes a newline in octal and leaves alone what else may end a line, as in a tmpfs's source."""
    line = "36 35 0:40 / /x ro,nosuid - tmpfs a\rb\x1cc\u2028d\udcff rw\n"
    assert set(mount_flags.mounts(line)) == {"/x"}
    assert [each.target for each in parse_mountinfo(line)] == ["/x"]
    seen = tmp_path / "mountinfo"
    seen.write_bytes(line.encode(errors="surrogateescape"))
    assert mount_tables.MountTables().read(str(seen)) == line
