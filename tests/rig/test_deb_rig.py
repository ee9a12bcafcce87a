# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package on two hosts, in place of what the rig has installed from the tree: containers move with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.rig import LXC_HOSTS, TREE, Rig
from tests.rig.absence import reboot
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import TO_B, migrate, runs_only_on

sys.path.insert(0, str(TREE / "vagrant"))
try:
    from riglib import deb, rootfs
    from riglib.by_readme import UNIT
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.nightly  # `make test-deb` has them

DEBS = "/root/debs"
ADDRESS = "10.0.3.120"


def to_install(rig: Rig, host: str, built: Path) -> list[Path]:
    """The package, and what it depends on as far as the host does not have that."""
    root = deb.fresh_root(rootfs.SUITE)
    told = deb.enter(root, built.parent, "apt-get install -s -q --no-install-recommends /given/migrator_*.deb")
    depends = {*re.findall(r"^Inst (\S+) ", told, re.M)} - {"migrator"}
    there = set(rig.sh(host, "dpkg-query -W -f '${Package}\\n'").split())
    assert {"lxc", "python3-websockets"} <= depends and "lxc" in there, (depends, there)
    downloaded = {file.name.partition("_")[0]: file for file in (root / deb.DOWNLOADED.lstrip("/")).glob("*.deb")}
    return [built, *(downloaded[name] for name in sorted(depends - there))]


@pytest.fixture(scope="module")
def packaged(rig: Rig) -> Iterator[Rig]:
    built = deb.package(rootfs.SUITE)
    for host in LXC_HOSTS:
        rig.sh(host, f"rm -rf /opt/migrator /usr/local/bin/migrator {DEBS}; mkdir {DEBS}")
        for file in to_install(rig, host, built):
            rig.copy(file, host, DEBS)
        rig.sh(host, f"DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends {DEBS}/*.deb")
    yield rig
    rig.down()  # the hosts of the tests that follow are those that they expect
    rig.up()


@pytest.fixture
def guest(packaged: Rig, clean_hosts: CleanHosts) -> str:
    """A guest on hosta; returns its start."""
    clean_hosts.allow("snapshot")
    packaged.guest("hosta", "c1", "tick", ip=ADDRESS, config=["lxc.start.auto = 1"])
    return str(packaged.probe("hosta", "c1")["start"])


def test_it_is_the_package_that_runs(packaged: Rig) -> None:
    for host in LXC_HOSTS:
        assert packaged.sh(host, "readlink -f $(command -v migrator)") == "/usr/lib/migrator/bin/migrator\n"
        assert packaged.sh(host, "dpkg -V migrator 2>&1 | grep -v /usr/share/ || true") == ""


def test_a_container_moves_in_one_go_and_back_by_stages(packaged: Rig, guest: str) -> None:
    migrate(packaged, "c1", "hosta").expect(0)
    runs_only_on(packaged, "hostb", guest)
    packaged.reaches("client", ADDRESS)
    to_a = ("-d", "root@hosta")
    for host, stage, *options in (("hostb", "prepare-data", *to_a), ("hosta", "import-data"),
                                  ("hostb", "create-dump", *to_a), ("hosta", "restore-dump"), ("hostb", "finish")):
        packaged.migrator(host, stage, "c1", *options).expect(0)
    runs_only_on(packaged, "hosta", guest)
    packaged.reaches("client", ADDRESS)


def test_its_unit_heals_at_boot(packaged: Rig, guest: str) -> None:
    """The source reboots when the destination has the token. Until that is healed, nobody removes the package."""
    for host, *command in (("hosta", "prepare-data", "c1", *TO_B), ("hostb", "import-data", "c1"),
                           ("hosta", "create-dump", "c1", *TO_B)):
        packaged.migrator(host, *command).expect(0)
    reboot(packaged, "hosta")
    for host in LXC_HOSTS:
        refused = packaged.exec(host, "apt-get", "remove", "-y", "-q", "migrator", check=False)
        assert refused.status and "containers are on their way" in refused.stdout + refused.stderr, refused
    enabled = "/etc/systemd/system/multi-user.target.wants/migrator-resume.service"
    assert packaged.sh("hosta", f"readlink -f {enabled}") == "/usr/lib/systemd/system/migrator-resume.service\n"
    packaged.sh("hosta", f"python3 {UNIT} start migrator-resume")
    runs_only_on(packaged, "hostb", guest)
    assert packaged.status("hosta", "c1")["state"] == packaged.status("hostb", "c1")["state"] == "finished"

