# SPDX-License-Identifier: GPL-2.0-or-later
"""The Vagrantfile boots: two virtual machines, set up by provision.sh, and a container that moves between them.

`make test-vagrant` alone runs this. Where the machine cannot virtualize, as most of CI's cannot, it is emulated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import vagrant
from tests.rig import machine

pytestmark = [pytest.mark.vagrant, pytest.mark.timeout(3600)]

# vagrant/README.md has the same. /pool is what provision.sh sets as LXC path; udhcpc would wait for ever.
CONTAINER = """lxc-create -n web -B btrfs -t busybox >/dev/null
sed -i '/ro,bind/d' /pool/web/config
sed -i '/udhcpc/d' /pool/web/rootfs/etc/init.d/rcS
echo 'lxc.net.0.ipv4.address = 10.0.3.100/24' >>/pool/web/config
echo 'while sleep 1; do echo $((n+=1)) >>/count; done' >/pool/web/rootfs/bin/tick
echo '::respawn:/bin/sh /bin/tick' >>/pool/web/rootfs/etc/inittab
lxc-start -n web"""
COUNT = "/pool/web/rootfs/count"
SETUP = "cat /root/.ssh/authorized_keys /etc/fstab /etc/hosts; ip -br address show lxcbr0"
PATIENT = f"--max-downtime {vagrant.COMMAND}"  # on an emulated processor a standstill may be ten times as long
LIMIT = 300.0  # seconds, for what should take few; only where it hangs


@pytest.fixture(scope="module")
def machines() -> Iterator[vagrant.Machines]:
    """hosta and hostb; afterwards this machine must be as it was."""
    before = machine.state("vagrant")
    with vagrant.booted("hosta", "hostb") as made:
        namespace = Path(f"/proc/{made.libvirt.pid}/ns/pid").readlink()
        assert vagrant.living_in(namespace)
        yield made
    assert not vagrant.living_in(namespace)
    assert not vagrant.FOLDER.exists()
    left = {line for line in machine.state("vagrant") - before if not line.startswith("file: ")}  # others' may come
    assert not left


def counted(machines: vagrant.Machines, host: str) -> list[int]:
    return [int(line) for line in machines.root(host, f"cat {COUNT}").split()]


def counts_on(machines: vagrant.Machines, host: str, beyond: int) -> int:
    """Wait until it has counted beyond this, on that host; every number must be there once, from one start."""
    deadline = time.monotonic() + LIMIT
    while (numbers := counted(machines, host))[-1] <= beyond:
        assert time.monotonic() < deadline, f"it does not count on, on {host}"
        time.sleep(1)
    assert numbers == list(range(1, len(numbers) + 1))
    return numbers[-1]


def test_what_the_machines_are(machines: vagrant.Machines) -> None:
    """Debian 13 with its own kernel, AppArmor on, the same addresses as in the other rig."""
    for name, other, address in (("hosta", "hostb", "10.0.3.2/24"), ("hostb", "hosta", "10.0.3.3/24")):
        assert machines.root(name, "hostname").strip() == name
        assert machines.root(name, ". /etc/os-release; echo $VERSION_ID").strip() == "13"
        assert machines.root(name, "cat /sys/module/apparmor/parameters/enabled").strip() == "Y"
        assert machines.root(name, "ip -4 -br address show dev lxcbr0").split()[2:] == [address]
        assert "btrfs" in machines.root(name, "findmnt -n -o FSTYPE /pool")
        assert machines.root(name, f"ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new root@{other} hostname"
                             ).strip() == other
        assert machines.root(name, "migrator --version").startswith("migrator ")


def test_provisioning_again_changes_nothing(machines: vagrant.Machines) -> None:
    """As after a change in the working tree, while a container runs."""
    before = machines.root("hostb", SETUP)
    machines.vagrant("rsync", "hostb")
    machines.vagrant("provision", "hostb", timeout=vagrant.BOOT)
    after = machines.root("hostb", SETUP)
    assert after == before


def test_a_container_moves_there_stage_by_stage_and_back_in_one_command(machines: vagrant.Machines) -> None:
    machines.root("hosta", CONTAINER)
    machines.root("hosta", f"until [ -s {COUNT} ]; do sleep 1; done")
    count = counts_on(machines, "hosta", 0)
    machines.root("hosta", "migrator check web -d root@hostb")
    machines.root("hosta", "migrator prepare-data web -d root@hostb")
    machines.root("hostb", "migrator import-data web")
    count = counts_on(machines, "hosta", count)
    machines.root("hosta", f"migrator create-dump web -d root@hostb {PATIENT}")
    machines.root("hostb", "migrator restore-dump web")
    count = counts_on(machines, "hostb", count)
    machines.root("hosta", "migrator finish web")
    assert machines.root("hosta", "lxc-info -n web -s").split() == ["State:", "STOPPED"]
    machines.root("hostb", f"migrator migrate web -d root@hosta {PATIENT}")
    counts_on(machines, "hosta", count)
    assert machines.root("hostb", "lxc-info -n web -s").split() == ["State:", "STOPPED"]
