# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read from a container's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from migrator.config import config_reader, container_config, lxc_settings
from migrator.config.lxc_settings import Config, IdMap, Include, MountEntry, Net

CONFIG = """
# a comment = no setting
lxc.include = /usr/share/common.conf
lxc.rootfs.path = btrfs:/pool/c1/rootfs
lxc.arch = amd64
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.hwaddr = 00:16:3E:AA:BB:CC
lxc.net.0.ipv4.address = 10.0.3.5/24 10.0.3.255
lxc.net.0.ipv6.address = fd00::5/64
lxc.net.2.type=macvlan
lxc.net.2.name=lan
lxc.mount.entry = /srv/my\\040data srv/data none bind,ro,create=dir 0 0
lxc.mount.entry = tmpfs tmp tmpfs
lxc.mount.entry = broken
lxc.mount.auto = proc:mixed sys:ro
lxc.idmap = u 0 100000 65536
lxc.idmap = b 70000 300000 1
lxc.idmap = g x 1 2
lxc.apparmor.profile = "generated"
lxc.hook.version = 1
lxc.hook.pre-start = /usr/bin/hook --now
lxc.cgroup2.memory.max = 1G
lxc.cgroup.dir = somewhere
lxc.cgroup.dir.container = lxc/101
lxc.namespace.share.net = other
lxc.tty.max = 4
lxc.autodev = 0
lxc.environment = A=B
nonsense
"""


def parse(text: str, files: dict[str, str]) -> Config:
    """The configuration where there are these files and no others."""
    def read_file(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[path]

    return lxc_settings.parse(text, "config", read_file, lambda _: None)


def test_config() -> None:
    text = "lxc.seccomp.profile = /usr/share/s\nlxc.tty.max = 1\nlxc.include=/etc/gone"
    config = parse(CONFIG, {"/usr/share/common.conf": text})
    assert config == Config(
        arch="amd64", rootfs="/pool/c1/rootfs", backend="btrfs",
        nets=(
            Net(0, "veth", "lxcbr0", "", "00:16:3e:aa:bb:cc", "", ("10.0.3.5/24", "fd00::5/64")),
            Net(2, "macvlan", name="lan"),
        ),
        mounts=(
            MountEntry("/srv/my data", "srv/data", "none", ("bind", "ro", "create=dir")),
            MountEntry("tmpfs", "tmp", "tmpfs"),
        ),
        mount_auto=("proc:mixed", "sys:ro"),
        idmaps=(IdMap("u", 0, 100000, 65536), IdMap("u", 70000, 300000, 1), IdMap("g", 70000, 300000, 1)),
        apparmor="generated", seccomp="/usr/share/s", ttys=4, autodev=False,
        hooks=(("lxc.hook.pre-start", "/usr/bin/hook --now"),),
        includes=(Include("/usr/share/common.conf", "/usr/share/common.conf", config_reader.digest(text)),),
        faults=(("/etc/gone", "cannot be read: No such file or directory"),),
        cgroup=(("lxc.cgroup2.memory.max", "1G"),), cgroup_place="lxc/101",
        shared_namespaces=("share.net other",),
    )


def test_an_empty_value_takes_back() -> None:
    text = "lxc.mount.entry = /a a none bind\nlxc.mount.entry =\nlxc.net.0.type = veth\nlxc.net =\n"
    text += "lxc.net.1.type = empty"
    config = lxc_settings.parse(text)
    assert config.mounts == ()
    assert [net.index for net in config.nets] == [1]


def test_includes_that_set_something(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.conf").write_text("lxc.tty.max = 1\n")
    (tmp_path / "d" / "b.conf").write_text("# nothing\n")
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/d/\n")
    found = lxc_settings.read(tmp_path / "config").includes
    assert found == (Include(f"{tmp_path}/d/a.conf", f"{tmp_path}/d/", config_reader.digest("lxc.tty.max = 1\n")),)


def test_a_fence_of_ours_is_none_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("lxc.tty.max = 1\n")
    container_config.fence(tmp_path, "lxc.tty.max = 1\n", "0badc0de", "it is elsewhere")
    assert lxc_settings.read(tmp_path / "config") == Config(ttys=1)


def test_no_configuration(tmp_path: Path) -> None:
    ((path, fault),) = lxc_settings.read(tmp_path / "none").faults
    assert path == str(tmp_path / "none") and "No such file" in fault


def test_fstab_file() -> None:
    files = {"/etc/fs": "# no\n/a a none bind 0 0\n\n"}
    assert parse("lxc.mount.fstab = /etc/fs", files).mounts == (
        MountEntry("/a", "a", "none", ("bind",)),)


@given(st.text())
def test_any_config_can_be_read(text: str) -> None:
    parse(text, {})


KEYS = [line.partition("=")[0] for line in CONFIG.splitlines()]


@example([("lxc.net.0.ipv4.address", "\xa0")])  # a space to Python alone
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.text())))
def test_any_values_can_be_read(items: list[tuple[str, str]]) -> None:
    parse("\n".join(f"{key}={value}" for key, value in items), {})


@pytest.mark.parametrize(("options", "binds"), [
    ("bind", True), ("ro,rbind", True), ("bindx", True), ("nodev,rbind0", True), ("ro", False), ("xbind", False)])
def test_what_lxc_binds(options: str, binds: bool) -> None:
    """By how an option begins."""
    (entry,) = parse(f"lxc.mount.entry = /srv srv none {options}", {}).mounts
    assert entry.bind is binds
