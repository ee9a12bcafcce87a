# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read from a container's configuration."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from migrator.preflight import config_facts
from migrator.preflight.config_facts import Config, IdMap, MountEntry, Net

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
lxc.namespace.share.net = other
lxc.tty.max = 4
lxc.autodev = 0
lxc.environment = A=B
nonsense
"""


def test_config() -> None:
    included = {"/usr/share/common.conf": "lxc.seccomp.profile = /usr/share/s\nlxc.tty.max = 1\nlxc.include=/etc/gone"}
    config = config_facts.parse(CONFIG, included.get)
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
        includes=("/usr/share/common.conf", "/etc/gone"), missing_includes=("/etc/gone",),
        cgroup=(("lxc.cgroup2.memory.max", "1G"),), shared_namespaces=("share.net other",),
    )


def test_an_empty_value_takes_back() -> None:
    text = "lxc.mount.entry = /a a none bind\nlxc.mount.entry =\nlxc.net.0.type = veth\nlxc.net =\n"
    text += "lxc.net.1.type = empty"
    config = config_facts.parse(text)
    assert config.mounts == ()
    assert [net.index for net in config.nets] == [1]


def test_includes(tmp_path: Path) -> None:
    """A file, a folder of *.conf, and one that includes itself."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.conf").write_text("lxc.tty.max = 2")
    (tmp_path / "d" / "a.conf").write_text("lxc.tty.max = 1\nlxc.arch = x")
    (tmp_path / "d" / "c.txt").write_text("lxc.tty.max = 3")
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/d\nlxc.include = {tmp_path}/config")
    config = config_facts.read(tmp_path / "config")
    assert (config.ttys, config.arch, config.missing_includes) == (2, "x", ())
    assert config_facts.read(tmp_path / "none") == Config()


def test_fstab_file() -> None:
    files = {"/etc/fs": "# no\n/a a none bind 0 0\n\n"}
    assert config_facts.parse("lxc.mount.fstab = /etc/fs", files.get).mounts == (
        MountEntry("/a", "a", "none", ("bind",)),)


@given(st.text())
def test_any_config_can_be_read(text: str) -> None:
    config_facts.parse(text, lambda _: None)


KEYS = [line.partition("=")[0] for line in CONFIG.splitlines()]


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.text())))
def test_any_values_can_be_read(items: list[tuple[str, str]]) -> None:
    config_facts.parse("\n".join(f"{key}={value}" for key, value in items), lambda _: None)
