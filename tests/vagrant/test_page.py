# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts by the README: what is taken from the page, and the units that are started without systemd."""

from __future__ import annotations

import configparser
import importlib
import sys
from types import ModuleType

import pytest
from riglib import nat, network, page, rootfs

from harness.rig import VAGRANT

TEXT = """# Title

Text, and `code`:

    apt-get install -y one two     # both
    echo "a line without a prompt"

## First

    alpha# migrator peer invite
    7-velvet-harbor

    beta#  migrator peer join 7-velvet-harbor     # there

More, `apt-get install four` where needed.

```
    apt-get install five     # only shown
# no headline
```

    # /etc/some/file
    # a comment

    key = value

### Last

    # a comment, no file
    apt-get install three
"""


def test_blocks_of_a_page() -> None:
    plain, prompted, file, last = page.blocks(TEXT)
    assert [block.section for block in (plain, prompted, file, last)] == ["Title", "First", "First", "Last"]
    assert plain.plain == ["apt-get install -y one two     # both", 'echo "a line without a prompt"']
    assert prompted.prompted == [
        ("alpha", "migrator peer invite"),
        ("beta", "migrator peer join 7-velvet-harbor     # there"),
    ]
    assert (file.file, file.content) == ("/etc/some/file", "# a comment\n\nkey = value\n")
    assert (last.file, last.plain) == ("", ["# a comment, no file", "apt-get install three"])
    # Each is of one kind.
    assert not prompted.plain and not file.plain and not file.prompted and not plain.prompted and not plain.file


def test_packages_of_a_page() -> None:
    assert page.packages(TEXT) == ["apt-get install -y one two", "apt-get install three", "apt-get install four"]


def test_the_root_by_the_readme_is_named_after_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rootfs.readme_root(), rootfs.host_root()
    monkeypatch.setattr(page, "read", lambda: TEXT)
    assert rootfs.readme_packages() == ["four", "one", "three", "two"]
    assert rootfs.readme_root() != before[0]
    assert rootfs.host_root() == before[1]


def test_the_installation_is_one_block() -> None:
    text = f"{TEXT}\nText:\n\n    apt-get install x\n    pip install y\n"
    assert page.installation(text) == ["apt-get install x", "pip install y"]
    with pytest.raises(ValueError, match="0"):
        page.installation(TEXT)


@pytest.mark.parametrize("kind", ["none", "symmetric"])
def test_hosts_by_the_readme_have_no_bridge(kind: str) -> None:
    made = network.plan(nat.parse(kind), nat.parse(kind), by_readme=True)
    assert not any("lxcbr0" in line for lines in made.lines.values() for line in lines)
    assert not {"hosta", "hostb"} & set(made.rules)
    # In one segment Debian's own ifupdown gives the addresses; behind a router the rig does.
    given = any(line.startswith("address add") for line in made.lines.get("hosta", []))
    assert given == (kind != "none")
    assert made.addresses["hosta"] == (["192.0.2.2"] if kind == "none" else ["10.1.0.2"])


UNIT = """[Service]
Type=notify
Environment=ONE=1 "TWO=a b"
ExecStart=/bin/program --key ${STATE}/key $ONE $MISSING $TWO '$ONE'
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
"""


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(VAGRANT / "guests"), *sys.path])
    return importlib.import_module("unit")


@pytest.fixture
def service(unit: ModuleType) -> configparser.SectionProxy:
    parser: configparser.ConfigParser = unit.new_parser()
    parser.read_string(UNIT)
    return parser["Service"]


def test_a_units_command_line(unit: ModuleType, service: configparser.SectionProxy) -> None:
    """systemd.service(5), "Command lines"."""
    values = {**unit.environment(service), "STATE": "/var/lib/x y"}
    assert (values["ONE"], values["TWO"]) == ("1", "a b")
    assert unit.words(service["ExecStart"], values)[1:] == ["--key", "/var/lib/x y/key", "1", "a", "b", "1"]


def test_a_unit_gets_its_user_and_its_capabilities(unit: ModuleType, service: configparser.SectionProxy) -> None:
    command = unit.confined(service)
    assert f"--reuid={unit.DYNAMIC_USER}" in command
    for kind in ("inh", "ambient", "bounding"):
        assert any(word.endswith("=-all,+net_bind_service") and word.startswith(f"--{kind}") for word in command)
    service["DynamicUser"] = "no"
    assert unit.confined(service) == []
