# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a container is restored with, from the one that it is started with."""

from __future__ import annotations

from pathlib import Path

from migrator import config_reader, container_config, restore_config

FILES = {
    "/usr/share/lxc/config/common.conf":
        "# common\nlxc.tty.dir = lxc\nlxc.include = /usr/share/lxc/config/common.conf.d/\n",
    "/usr/share/lxc/config/common.conf.d/00-lxcfs.conf": "lxc.hook.post-stop = /usr/share/lxcfs/lxc.reboot.hook\n",
    "/usr/share/lxc/config/common.conf.d/10-more.conf": 'lxc.include = "/etc/lxc/nested.conf"\n',
    "/etc/lxc/nested.conf": "lxc.hook.pre-start = /usr/local/bin/nested\nlxc.cap.drop = sys_time\n",
}


def restored(text: str, veths: dict[int, str] | None = None) -> list[tuple[str, str]]:
    def folder(path: str) -> list[str] | None:
        return [name for name in FILES if name.startswith(path)] if path.endswith("/") else None

    reading = config_reader.read("/pool/c1/config", text, FILES.__getitem__, folder)
    return config_reader.settings(
        restore_config.text(reading.settings, config_file="/pool/c1/config", veths=veths or {}))


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
    assert restored(text, {0: "veth0badc0de0"}) == [
        *config_reader.settings(text), ("lxc.net.0.veth.pair", "veth0badc0de0")]
