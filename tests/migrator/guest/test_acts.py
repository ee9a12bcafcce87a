# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done in a container's mount namespaces, in ones that the tests make, and with whose rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from migrator.guest import drop_in
from migrator.host.mountinfo import MountLine, parse_mountinfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
# A namespace like that of a service; the folder $1 is its root. It waits until its input ends.
SERVICE = """
set -e
mount --bind "$1" "$1"; cd "$1"; mkdir -p run etc tmp zone
mount -t tmpfs tmpfs run; mkdir -p run/credentials/a.service
mount -t ramfs ramfs run/credentials/a.service; echo secret >run/credentials/a.service/key
chmod 400 run/credentials/a.service/key; mkdir run/credentials/a.service/sub; ln -s x run/credentials/a.service/link
mount -o remount,bind,ro,nosuid run/credentials/a.service
printf 'TZif2 %500s' x >zone/Here; ln -s ../zone/Here etc/localtime
"""
DO = """
import json, os, subprocess, sys
from pathlib import Path
from migrator.guest import acts
from migrator.guest.acts import Act
from migrator.host.mountinfo import parse_mountinfo
root, steps, inside, patch = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
real = acts.run
if patch:
    acts.run = lambda argv, **given: real([sys.executable, "-I", "-c", patch], **given)
program = ["/bin/sh", "-c", f"{inside}exec /bin/cat"]
with subprocess.Popen(["unshare", *sys.argv[5:], "--pid", "--fork", "--root", root, *program],
                      stdin=subprocess.PIPE) as outer:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while not children.read_text().split(): pass
    class guest: pid = int(children.read_text())
    while Path(f"/proc/{guest.pid}/comm").read_text() != "cat\\n": pass
    namespace = os.readlink(f"/proc/{guest.pid}/ns/mnt")
    if "--user" in sys.argv:
        for kind in ("uid", "gid"): Path(f"/proc/{guest.pid}/{kind}_map").write_text("0 100000 1000")
    lines = parse_mountinfo(Path(f"/proc/{guest.pid}/mountinfo").read_text())
    first = {line.target: line.device for line in reversed(lines)}
    asked = [Act(step[0], guest.pid, namespace, step[1], *step[2:], device=first.get(step[1], "")) for step in steps]
    print(json.dumps([trouble for _, trouble in acts.carry_out(guest.pid, asked)]))
    print(Path(f"/proc/{guest.pid}/mountinfo").read_text())
    top = f"/proc/{guest.pid}/root"
    for path in sorted(path for name in ("etc", "run", "tmp") for path in Path(top, name).rglob("*")):
        print(path.relative_to(top), oct(path.lstat().st_mode), os.readlink(path) if path.is_symlink() else "",
              os.listxattr(path, follow_symlinks=False))
    outer.stdin.close()
"""


PATCHED = """
import os
from migrator.guest import acts, localtime, mount_calls
real = mount_calls.detach
{}
acts._main()
"""


def act(tmp_path: Path, *steps: Sequence[object], extra: str = "", inside: str = "",
        new: str = "--mount", patch: str = "") -> tuple[list[str], str, str]:
    """Do them; what failed, what is mounted then, and the files that are there."""
    root = tmp_path / "root"
    root.mkdir()
    tools = "mkdir -p usr; mount --bind -o ro /usr usr; for each in bin lib lib64; do ln -s usr/$each $each; done\n"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c",
         f'{SERVICE}{tools}{extra}\nexec "$2" -c "$3" "$1" "$4" "$5" "$6" {new}', "sh", str(root), sys.executable,
         DO, json.dumps(steps), inside, patch and PATCHED.format(patch)],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    troubles, _, rest = done.stdout.partition("\n")
    mounts, _, files = rest.partition("\n\n")
    return json.loads(troubles), mounts, files


def topmost(mounts: str, target: str) -> MountLine:
    lines = parse_mountinfo(mounts)
    (found,) = (line for line in lines if line.target == target and line.id not in {each.parent for each in lines})
    return found


TMP = "mount -t tmpfs -o mode=1770,nosuid,nodev,uid=5 tmpfs tmp; mount -o remount,bind,ro,nosuid tmp\n"
OLD_KERNEL = "mount_calls.attach_beneath = lambda mount, target: False\n"


@pytest.mark.parametrize("shared", ["", "mount --make-rshared .\n"])
@pytest.mark.parametrize("patch", ["", OLD_KERNEL])
def test_an_empty_tmp_is_another_tmpfs(tmp_path: Path, shared: str, patch: str) -> None:
    troubles, mounts, files = act(tmp_path, ["renew", "/tmp", ["ro", "nosuid"]], extra=TMP + shared, patch=patch)
    assert troubles == [""]
    (line,) = (line for line in mounts.splitlines() if " /tmp " in line)
    assert " ro,nosuid" in line and " - tmpfs tmpfs " in line and "mode=1770,uid=5" in line and "size=" in line
    assert "tmp/" not in files


@pytest.mark.parametrize("patch", ["", OLD_KERNEL])
def test_what_is_written_meanwhile_stays(tmp_path: Path, patch: str) -> None:
    """In the last moment before the old one is unmounted."""
    write = """
def detach(target):
    os.mkdir("/tmp/sub", 0o750)
    with open("/tmp/sub/file", "x") as file: file.write("x")
    os.chmod("/tmp/sub/file", 0o400)
    os.symlink("x", "/tmp/link")
    real(target)
mount_calls.detach = detach
"""
    troubles, mounts, files = act(tmp_path, ["renew", "/tmp", []], extra="mount -t tmpfs tmpfs tmp",
                                  patch=patch + write)
    assert troubles == [""] and mounts.count(" /tmp ") == 1
    assert {"tmp/sub 0o40750  []", "tmp/sub/file 0o100400  []", "tmp/link 0o120777 x []"} <= {*files.splitlines()}


def test_no_link_in_the_place_of_a_copy_is_followed(tmp_path: Path) -> None:
    """A service's user could have the container's root change the mode of any file."""
    meanwhile = """
def detach(target):
    os.close(os.open("/tmp/a", os.O_CREAT, 0o666))
    os.chmod("/tmp/a", 0o666)
    real(target)
def swap(name, *given, **more):
    honest(name, *given, **more)
    if os.path.exists("/tmp/a"): os.unlink("/tmp/a")
    os.symlink("/etc/shadow", "/tmp/a")
mount_calls.detach, honest, os.chown = detach, os.chown, swap
os.fchown = lambda fd, *given: (os.unlink("/tmp/a"), os.symlink("/etc/shadow", "/tmp/a"))
"""
    troubles, _, files = act(tmp_path, ["renew", "/tmp", []], patch=meanwhile,
                             extra="mount -t tmpfs tmpfs tmp; >etc/shadow; chmod 400 etc/shadow")
    assert troubles == [""] and "tmp/a 0o120777 /etc/shadow" in files
    assert "etc/shadow 0o100400" in files


def test_what_is_deleted_as_soon_as_it_is_copied_stays_so(tmp_path: Path) -> None:
    meanwhile = """
def detach(target):
    for name in "abc": os.symlink("x", f"/tmp/{name}")
    real(target)
def chown(name, *given, **more):
    if name == "b": os.unlink("/tmp/b")
    honest(name, *given, **more)
mount_calls.detach, honest, os.chown = detach, os.chown, chown
"""
    troubles, mounts, files = act(tmp_path, ["renew", "/tmp", []], extra="mount -t tmpfs tmpfs tmp", patch=meanwhile)
    assert troubles == [""] and mounts.count(" /tmp ") == 1
    assert "tmp/a " in files and "tmp/b " not in files and "tmp/c " in files


@pytest.mark.parametrize(("kind", "more"), [
    ("credentials", "mkdir /tmp/a"), ("renew", "mkfifo /tmp/a"), ("renew", "truncate -s 17M /tmp/a"),
    ("renew", "mkdir -p /tmp" + "/a" * 20), ("renew", "cd /tmp; for i in a $(seq 1001); do >$i; done"),
])
def test_what_cannot_be_copied_is_there_again(tmp_path: Path, kind: str, more: str) -> None:
    write = f"mount_calls.detach = lambda target: (os.system({more!r}), real(target))"
    troubles, mounts, files = act(tmp_path, [kind, "/tmp", []], extra="mount -t ramfs ramfs tmp", patch=write)
    assert "it holds" in troubles[0]
    assert topmost(mounts, "/tmp").type == "ramfs" and "tmp/a" in files


def test_what_is_open_only_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    busy = """
tries = [16, 16, 0]
def detach(target):
    if number := tries.pop(0): raise OSError(number, "busy")
    real(target)
mount_calls.detach = detach
"""
    troubles, mounts, _ = act(tmp_path, ["renew", "/tmp", []], extra="mount -t ramfs ramfs tmp", patch=busy)
    assert troubles == [""] and topmost(mounts, "/tmp").type == "tmpfs" and mounts.count(" /tmp ") == 1


def test_where_anything_else_fails_the_old_one_is_there_again(tmp_path: Path) -> None:
    fails = """
honest = mount_calls.attach
def attach(mount, target):
    mount_calls.attach = honest
    raise OSError(12, "no memory")
mount_calls.attach = attach
"""
    troubles, mounts, _ = act(tmp_path, ["renew", "/tmp", []], extra="mount -t ramfs ramfs tmp",
                              patch=OLD_KERNEL + fails)
    assert "no memory" in troubles[0] and " - ramfs " in mounts


@pytest.mark.parametrize("kind", ["renew", "credentials"])
def test_another_mount_over_it_stays(tmp_path: Path, kind: str) -> None:
    """As by `systemctl bind`: it is the topmost one that a path leads to."""
    troubles, mounts, _ = act(tmp_path, [kind, "/tmp", []], extra="mount -t ramfs ramfs tmp; mount -t ramfs other tmp")
    assert "something else is mounted there" in troubles[0]
    assert mounts.count(" /tmp ") == 2 and topmost(mounts, "/tmp").source == "other"


CREDENTIALS = "/run/credentials/a.service"


def test_where_no_credentials_are_it_is_unmounted(tmp_path: Path) -> None:
    troubles, mounts, _ = act(tmp_path, ["credentials", "/tmp"], extra="mount -t ramfs ramfs tmp")
    assert troubles == [""] and " /tmp " not in mounts


@pytest.mark.parametrize("shared", ["", "mount --make-rshared .\n"])
@pytest.mark.parametrize("patch", ["", OLD_KERNEL])
def test_credentials_are_on_another_tmpfs(tmp_path: Path, shared: str, patch: str) -> None:
    """As forbidding as the ramfs, which CRIU cannot dump."""
    troubles, mounts, files = act(tmp_path, ["credentials", CREDENTIALS, ["ro", "nosuid"]], extra=shared, patch=patch)
    assert troubles == [""] and mounts.count(f" {CREDENTIALS} ") == 1
    line = topmost(mounts, CREDENTIALS)
    assert line.type == "tmpfs" and {"ro", "nosuid"} <= line.options
    folder = CREDENTIALS[1:]
    assert {f"{folder} 0o40755  []", f"{folder}/key 0o100400  []", f"{folder}/sub 0o40755  []",
            f"{folder}/link 0o120777 x []"} <= {*files.splitlines()}


@pytest.mark.parametrize("more", ["mkfifo", "truncate -s 17M"])
def test_credentials_that_cannot_be_copied_stay(tmp_path: Path, more: str) -> None:
    troubles, mounts, _ = act(tmp_path, ["credentials", "/tmp"], extra=f"mount -t ramfs ramfs tmp; {more} tmp/a")
    assert "it holds" in troubles[0] and topmost(mounts, "/tmp").type == "ramfs"


def test_credentials_that_are_in_use_stay(tmp_path: Path) -> None:
    troubles, mounts, _ = act(tmp_path, ["credentials", CREDENTIALS], inside=f"exec 9<{CREDENTIALS}/key; ")
    assert troubles == ["something in it is open"] and topmost(mounts, CREDENTIALS).type == "ramfs"


@pytest.mark.parametrize("kind", ["credentials", "renew"])
def test_what_somebody_has_open_stays(tmp_path: Path, kind: str) -> None:
    troubles, mounts, _ = act(tmp_path, [kind, "/tmp", []], extra="mount -t ramfs ramfs tmp", inside="exec 9</tmp; ")
    assert troubles == ["something in it is open"]
    assert " /tmp " in mounts and " - ramfs " in mounts


def test_a_tmp_that_holds_something_stays(tmp_path: Path) -> None:
    troubles, mounts, files = act(tmp_path, ["renew", "/tmp", []], extra="mount -t ramfs ramfs tmp; >tmp/file")
    assert "it holds files" in troubles[0]
    assert " /tmp " in mounts and " - ramfs " in mounts and "tmp/file" in files


def test_localtime_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _, _, files = act(tmp_path / "a", ["copy", "/etc/localtime"])
    assert "etc/localtime 0o100644  ['user.migrator.link']" in files
    (tmp_path / "b").mkdir()
    _, _, files = act(tmp_path / "b", ["copy", "/etc/localtime"], ["copy", "/etc/localtime"],
                      ["link", "/etc/localtime"], ["link", "/etc/localtime"])
    assert "etc/localtime 0o120777 ../zone/Here" in files


@pytest.mark.parametrize(("extra", "expected"), [
    ("rm etc/localtime; cp zone/Here etc/localtime", "etc/localtime 0o100644  []"),  # somebody's own
    ("ln -sf /zone/Other etc/localtime", "etc/localtime 0o120777 /zone/Other"),
    ("rm etc/localtime", "run/credentials 0o40755"),  # nothing comes in its place
])
def test_only_our_own_file_becomes_a_link(tmp_path: Path, extra: str, expected: str) -> None:
    troubles, _, files = act(tmp_path, ["link", "/etc/localtime"], extra=extra)
    assert troubles == [""] and expected in files
    assert ("etc/localtime" in files) == ("etc/localtime" in expected)


@pytest.mark.parametrize("extra", ["echo no >zone/Here", "rm zone/Here; mkfifo zone/Here", "rm zone/Here"])
def test_what_is_no_time_zone_stays_a_link(tmp_path: Path, extra: str) -> None:
    troubles, _, files = act(tmp_path, ["copy", "/etc/localtime"], extra=extra)
    assert troubles[0] and "etc/localtime 0o120777 ../zone/Here" in files


def test_a_zone_that_is_set_meanwhile_stays(tmp_path: Path) -> None:
    meanwhile = """
content = localtime._content
localtime._content = lambda: (content(), os.remove("/etc/localtime"), os.symlink("/zone/Other", "/etc/localtime"))[0]
"""
    troubles, _, files = act(tmp_path, ["copy", "/etc/localtime"], patch=meanwhile)
    assert "just been changed" in troubles[0]
    assert "etc/localtime 0o120777 /zone/Other" in files and ".localtime.migrator" not in files


@pytest.mark.parametrize(("kind", "target", "place"), [
    ("link", "/etc/localtime", "etc/localtime"), ("copy", "/etc/localtime", "zone/Here"),
    ("no-drop-in", drop_in.UNTIL_BOOT, drop_in.UNTIL_BOOT[1:]),
])
def test_no_device_is_opened(tmp_path: Path, kind: str, target: str, place: str) -> None:
    """Of the container's: whoever opens it is outside the container's cgroup, and so past its device filter."""
    spy = """
honest = os.open
def look(path, flags, *given, **more):
    fd = honest(path, flags, *given, **more)
    if not flags & os.O_PATH and os.fstat(fd).st_mode >> 12 == 2: os.mkdir("/etc/opened")
    return fd
os.open = look
"""
    made = f"mkdir -p {Path(place).parent}; rm -f {place}; mknod {place} c 1 3"
    _, _, files = act(tmp_path, [kind, target], extra=made, patch=spy)
    assert "etc/localtime" in files and "etc/opened" not in files


def test_what_a_killed_one_has_left_is_no_obstacle(tmp_path: Path) -> None:
    troubles, _, files = act(tmp_path, ["copy", "/etc/localtime"], extra=">etc/.localtime.migrator")
    assert troubles == [""] and ".localtime.migrator" not in files


@pytest.mark.parametrize("place", [drop_in.UNTIL_BOOT, drop_in.FOR_GOOD])
def test_the_drop_in_comes_and_goes(tmp_path: Path, place: str) -> None:
    (tmp_path / "a").mkdir()
    troubles, _, files = act(tmp_path / "a", ["drop-in", place], ["drop-in", place])
    assert troubles == ["", ""] and f"{place[1:]} 0o100644" in files and ".zz-migrator" not in files
    (tmp_path / "b").mkdir()
    troubles, _, files = act(tmp_path / "b", ["drop-in", place], ["no-drop-in", place], ["no-drop-in", place])
    assert troubles == ["", "", ""] and place[1:] not in files


@pytest.mark.parametrize("made", ["echo x >", "ln -s /etc/passwd ", "mkfifo "])
def test_somebody_else_s_drop_in_stays(tmp_path: Path, made: str) -> None:
    place = drop_in.UNTIL_BOOT
    troubles, _, files = act(tmp_path, ["drop-in", place], ["no-drop-in", place],
                             extra=f"mkdir -p {Path(place[1:]).parent}; {made}{place[1:]}")
    assert "migrator has not made" in troubles[0] and place[1:] in files


def test_with_the_container_s_own_rights(tmp_path: Path) -> None:
    """In a user namespace where root is user 100000 of the host: what is another one's cannot be changed there."""
    troubles, _, files = act(tmp_path, ["copy", "/etc/localtime"], new="--mount --user")
    assert "Permission denied" in troubles[0] and "etc/localtime 0o120777" in files


def test_a_process_that_has_ended_is_nobody(tmp_path: Path) -> None:
    from migrator.guest import acts
    from migrator.guest.acts import Act

    ((_, trouble),) = acts.carry_out(os.getpid(), [Act("copy", os.getpid(), "mnt:[1]", "/etc/localtime")])
    assert "has ended" in trouble


def test_who_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a file system that does not answer."""
    from migrator.guest import acts
    from migrator.guest.acts import Act

    def hangs(*_: object) -> None:
        while True:
            os.read(os.pipe()[0], 1)

    monkeypatch.setattr(acts, "LIMIT", 0.2)
    monkeypatch.setattr("migrator.guest.own_rights.take", hangs)
    told = acts._in_child(1, "mnt:[1]", 1, [(0, Act("copy", 1, "mnt:[1]", "/etc/localtime"))])
    assert "was not done" in told["0"]
