# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs migrator, from the working tree, and the guests' helpers on the hosts."""

import concurrent.futures
import hashlib
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from riglib import paths, rendezvous
from riglib.hosts import HOSTS, LXC_HOSTS
from riglib.run import inside, say

TREE = Path(paths.TREE)
TOP_FILES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "COPYING")
NOT_PACKAGES = ("tests", "vagrant", "bench", "build", "harness")
MIGRATOR_HOSTS = (*LXC_HOSTS, rendezvous.HOST)
HELPERS = "/opt/rig"
"""Where the hosts find the contents of vagrant/guests."""


def package_files() -> list[str]:
    """Return the files of the working tree that the package is built from, relative to the tree."""
    found = [name for name in TOP_FILES if (TREE / name).is_file()]
    for package in sorted(TREE.glob("*/__init__.py")):
        if package.parent.name not in NOT_PACKAGES:
            files = (file for file in package.parent.rglob("*") if file.is_file() and file.suffix != ".pyc")
            found += sorted(str(file.relative_to(TREE)) for file in files)
    return found


def helper_files() -> list[str]:
    """Return the files of vagrant/guests, relative to the tree."""
    return sorted(str(file.relative_to(TREE)) for file in (TREE / "vagrant/guests").glob("*.??"))


def digest(files: list[str]) -> str:
    """Return a hash over the names and contents of these files."""
    total = hashlib.sha256()
    for name in files:
        total.update(f"{name}\0{hashlib.sha256((TREE / name).read_bytes()).hexdigest()}\0".encode())
    return total.hexdigest()


def archive(files: list[str], name: str) -> Path:
    """Pack these files into a tar archive in the rig's own folder; return its path."""
    made = Path(paths.LIB, f"{name}.tar")
    with tarfile.open(made, "w") as tar:
        for file in files:
            tar.add(TREE / file, file)
    return made


def install_helpers() -> None:
    """Give every host the programs of vagrant/guests, and provision.sh."""
    packed = archive([*helper_files(), "vagrant/provision.sh"], "helpers")
    unpack = ["tar", "-x", "--strip-components=1", "--no-same-owner", "-C", HELPERS]
    for host in HOSTS:
        inside(host, ["mkdir", "-p", HELPERS])
        inside(host, unpack, file=packed)


def install_migrator(hosts: Sequence[str] = MIGRATOR_HOSTS) -> None:
    """Build migrator on the hosts that run it, and install it there."""
    files = package_files()
    if "setup.py" not in files and "pyproject.toml" not in files:
        say("warning: the working tree has no setup.py yet; migrator is not installed")
        return
    started = time.monotonic()
    packed = archive(files, "tree")
    for host in hosts:
        inside(host, ["sh", "-c", "rm -rf /opt/migrator/tree && mkdir -p /opt/migrator/tree"])
        inside(host, ["tar", "-x", "--no-same-owner", "-C", "/opt/migrator/tree"], file=packed)
    install = ["sh", f"{HELPERS}/provision.sh", "migrator", "/opt/migrator/tree"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for done in [pool.submit(inside, host, install, timeout=120) for host in hosts]:
            done.result()
    say(f"installed migrator in {time.monotonic() - started:.1f} s")
