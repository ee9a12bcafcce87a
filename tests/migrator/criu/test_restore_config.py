# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a container is restored with, from the one that it is started with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from migrator.config import config_reader, container_config
from migrator.criu import restore, restore_config
from migrator.record.migration_paths import Layout

FILES = {
    "/usr/share/lxc/config/common.conf":
        "# common\nlxc.tty.dir = lxc\nlxc.include = /usr/share/lxc/config/common.conf.d/\n",
    "/usr/share/lxc/config/common.conf.d/00-lxcfs.conf": "lxc.hook.post-stop = /usr/share/lxcfs/lxc.reboot.hook\n",
    "/usr/share/lxc/config/common.conf.d/10-more.conf": 'lxc.include = "/etc/lxc/nested.conf"\n',
    "/etc/lxc/nested.conf": "lxc.hook.pre-start = /usr/local/bin/nested\nlxc.cap.drop = sys_time\n",
}


ADDED = [
    ("lxc.rootfs.mount", "/run/migrator/0badc0de/root"), ("lxc.console.path", "none"), ("lxc.tty.max", "0"),
    ("lxc.hook.post-stop", restore_config.reboot_hook(Path("/pool"))),
]
REAL = {"/lib": "/usr/lib", "/srv/a b": "/disk/a # b"}


def changed(text: str, *, veths: dict[int, str] | None = None, console: bool = False,
            fstab: str = "") -> list[tuple[str, str]]:
    def folder(path: str) -> list[str] | None:
        return [name for name in FILES if name.startswith(path)] if path.endswith("/") else None

    reading = config_reader.read("/pool/c1/config", text, FILES.__getitem__, folder)
    return config_reader.settings(restore_config.text(
        reading.settings, container=Path("/pool/c1"), root=Path("/run/migrator/0badc0de/root"), veths=veths or {},
        console=console, fstab=fstab, real=lambda path: REAL.get(path, path)))


def restored(text: str, fstab: str = "") -> list[tuple[str, str]]:
    """All of it but what is always added."""
    found = changed(text, fstab=fstab)
    assert found[-4:] == ADDED
    return found[:-4]


def test_what_is_included_stands_where_it_is_named() -> None:
    text = "lxc.tty.dir = a\nlxc.include = /usr/share/lxc/config/common.conf\nlxc.tty.dir = b\n"
    assert restored(text) == [
        ("lxc.tty.dir", "a"), ("lxc.tty.dir", "lxc"),
        ("lxc.hook.post-stop", "env LXC_CONFIG_FILE=/pool/c1/config /usr/share/lxcfs/lxc.reboot.hook"),
        ("lxc.cap.drop", "sys_time"), ("lxc.tty.dir", "b"),
    ]


def test_what_belongs_to_a_start_is_left_out() -> None:
    text = container_config.fenced(
        "lxc.uts.name = c1\nlxc.apparmor.profile = generated\nlxc.apparmor.allow_nesting = 1\n"
        "lxc.apparmor.raw = deny mount,\nlxc.hook.pre-start = /usr/local/bin/prepare\nlxc.hook.mount = /bin/m\n",
        hook := Path("/pool/c1/migrator-fence"), "0badc0de")
    assert str(hook) in text
    assert restored(container_config.unfenced(text)) == [("lxc.uts.name", "c1"), ("lxc.hook.mount", "/bin/m")]


def test_hooks_of_its_end_are_told_the_containers_own_configuration() -> None:
    """LXC would name the file that it was restored with, which is gone by then."""
    found = restored("lxc.hook.stop = /bin/a --now\nlxc.hook.post-stop = /bin/b\nlxc.hook.post-stop =\n")
    assert found == [("lxc.hook.stop", "env LXC_CONFIG_FILE=/pool/c1/config /bin/a --now"),
                     ("lxc.hook.post-stop", "env LXC_CONFIG_FILE=/pool/c1/config /bin/b"), ("lxc.hook.post-stop", "")]


def test_all_else_is_as_it_was() -> None:
    text = ("lxc.net.0.type = veth\nlxc.net.0.link = br0\nlxc.cap.drop =\nlxc.cap.drop = sys_time\n"
            "lxc.selinux.context = x\nlxc.environment = A=b c\nlxc.environment = '\"in quotes\"'\n")
    assert restored(text) == config_reader.settings(text)
    assert changed(text, veths={0: "veth0badc0de0"})[-1] == ("lxc.net.0.veth.pair", "veth0badc0de0")


def test_a_console_is_the_hosts_own() -> None:
    """From the container's own devpts, as with lxc.pty.max, LXC takes one at a start only."""
    text = "lxc.console.path = none\nlxc.pty.max = 1024\nlxc.tty.max = 4\nlxc.tty.dir = lxc\nlxc.console.logfile = /l\n"
    assert changed(text, console=True) == [
        ("lxc.tty.dir", "lxc"), ("lxc.console.logfile", "/l"), ADDED[0], ("lxc.pty.max", "1"), *ADDED[2:]]


@pytest.mark.parametrize(("entry", "restored_as"), [
    ("/lib lib none ro,bind 0 0", "/usr/lib lib none ro,bind 0 0"),  # as the busybox template has it
    ("/srv/a\\040b srv none rbind,create=dir", "/disk/a\\040\\043\\040b srv none rbind,create=dir"),
    ("/lib lib none ro,bindx 0 0", "/usr/lib lib none ro,bindx 0 0"),  # binds as well, for LXC
    ("/lib lib tmpfs size=1m 0 0", "/lib lib tmpfs size=1m 0 0"),
    ("proc proc proc bind 0 0", "proc proc proc bind 0 0"),
    ("/lib lib", "/lib lib"),
])
def test_what_is_bound_is_named_by_its_real_path(entry: str, restored_as: str) -> None:
    assert restored(f"lxc.mount.entry = {entry}\n") == [("lxc.mount.entry", restored_as)]


def test_mounts_of_a_file_of_their_own() -> None:
    fstab = "# of the container\n\nproc proc proc nodev 0 0\n/srv/a\\040b srv none bind,create=dir\n"
    text = "lxc.mount.fstab = /etc/lxc/fstab\nlxc.mount.entry = shm dev/shm tmpfs defaults\n"
    assert restored(text, fstab) == [
        ("lxc.mount.entry", "shm dev/shm tmpfs defaults"), ("lxc.mount.entry", "proc proc proc nodev 0 0"),
        ("lxc.mount.entry", "/disk/a\\040\\043\\040b srv none bind,create=dir")]


def test_what_is_ephemeral_does_not_come_again() -> None:
    """LXC destroys it once the hooks have run."""
    assert changed("lxc.ephemeral = 1\n")[-1] == ("lxc.tty.max", "0")


# What LXC's monitor does: when it runs hooks, by popen(3), it has not reaped the first process yet.
MONITOR = """
import os, subprocess, sys, time
init = subprocess.Popen(["env", "--default-signal", "sh", "-c", sys.argv[1]])  # as init has it, also with nohup
while "sleep" not in sys.argv[1] and open(f"/proc/{init.pid}/stat").read().split()[2] != "Z":
    time.sleep(0.01)
os.system(f"exec {sys.argv[2]} c1 lxc post-stop")
init.kill()
"""


@pytest.mark.parametrize(("end", "started"), [
    ("kill -HUP $$", True), ("kill -INT $$", False), ("kill -KILL $$", False), ("exit 1", False), ("exit 0", False),
    ("sleep 60", False),
])
def test_a_reboot_is_told_from_a_stop(tmp_path: Path, end: str, started: bool) -> None:
    lxcpath = tmp_path / "an lxc's path"
    program = tmp_path / "lxc-start"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{tmp_path}/started; env >>{tmp_path}/started\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LXC_NAME": "c1", "SECRET": "of another life"}
    subprocess.run([sys.executable, "-c", MONITOR, end, restore_config.reboot_hook(lxcpath)], env=environment,
                   check=True)
    assert (tmp_path / "started").exists() == started
    if started:
        said = (tmp_path / "started").read_text()
        assert said.startswith(f"-d\n-n\nc1\n-P\n{lxcpath}\n") and "SECRET" not in said


@pytest.mark.parametrize(("made", "text", "folder"), [
    ("config.restore", "lxc.cgroup.dir = guests\nlxc.uts.name = web\nlxc.cgroup.dir = guests/web\n", "guests/web"),
    ("config.start", "lxc.include = {0}/more\n", "more"), ("config.start", "lxc.uts.name = web\n", ""), ("", "", ""),
])
def test_where_its_cgroups_were_made(tmp_path: Path, made: str, text: str, folder: str) -> None:
    layout = Layout(tmp_path, "web", "0badc0de")
    layout.spool.mkdir(parents=True)
    (tmp_path / "more").write_text("lxc.cgroup.dir = more\n")
    if made:
        (layout.spool / made).write_text(text.format(tmp_path))
    assert restore.cgroup_folder(layout) == folder
