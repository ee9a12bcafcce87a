# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts by the README: plain Debian, then what README.md tells its reader to type to install migrator, and no more.

`rig up --hosts readme` leaves hosta, hostb and rendezvous in the state that a reader has after those lines; they also
answer to the names that the page gives them. What comes after that, there and in docs/guide.md, is typed by
tests/rig/test_readme.py.
"""

import concurrent.futures
from pathlib import Path

from riglib import install, page, paths
from riglib.hosts import LXC_HOSTS
from riglib.run import inside, say

ALIASES = {"hosta": "alpha", "hostb": "beta", "rendezvous": "meet.example.org"}
HOSTS = tuple(ALIASES)
DISK = "/dev/vg0/lxc"
"""The empty disk of each LXC host."""
REPOSITORY = f"{install.HELPERS}/migrator.git"
UNIT = f"{install.HELPERS}/guests/unit.py"

INTERFACES = """# As Debian's installer leaves it.
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

auto eth0
iface eth0 inet static
    address {address}/24
"""

PUBLISH = f"""set -e
rm -rf /usr/local/src/migrator /opt/migrator /usr/local/bin/migrator {REPOSITORY} /opt/rig/tree
mkdir /opt/rig/tree
cd /opt/rig/tree
tar -x --no-same-owner
git init -q -b main
git add --all
git -c user.name=rig -c user.email=rig@localhost commit -q -m tree
git clone -q --bare . {REPOSITORY}
"""
"""Removes an earlier installation, and makes a repository of the working tree, which arrives as a tar archive."""


def boot(addresses: dict[str, list[str]], *, lan: bool) -> None:
    """Do what Debian's init does: bring up eth0 if the rig has left that to it, and start LXC's own bridge."""
    for host in LXC_HOSTS:
        if lan:
            text = INTERFACES.format(address=addresses[host][0])
            inside(host, ["tee", "/etc/network/interfaces"], text=text)
            inside(host, ["ifup", "eth0"])
        inside(host, ["python3", UNIT, "start", "lxc-net"])


def package_files() -> list[str]:
    """Return the files of the working tree that the repository holds: what is installed, and what the page copies."""
    units = sorted(str(file.relative_to(paths.TREE)) for file in Path(paths.TREE, "systemd").iterdir())
    return [*install.package_files(), *units]


def install_migrator(*, lan: bool) -> None:
    """Type the README's lines on every host that runs migrator; on a shared LAN no host needs a rendezvous."""
    packed = install.archive(package_files(), "tree")
    lines = "\n".join(["set -e", *page.installation(page.read())]).replace("REPOSITORY", REPOSITORY)

    def type_all(host: str) -> None:
        inside(host, ["sh", "-c", PUBLISH], file=packed)
        inside(host, ["sh", "-c", lines], timeout=300)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for done in [pool.submit(type_all, host) for host in (LXC_HOSTS if lan else HOSTS)]:
            done.result()
    say("installed migrator by the README")
