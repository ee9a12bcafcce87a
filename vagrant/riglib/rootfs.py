# SPDX-License-Identifier: GPL-2.0-or-later
"""The cached root file systems: one for all rig hosts, one for the guests that need more than busybox.

Each is a directory under /var/cache/migrator-rig whose name ends in a hash of what it is made from. It is built under
another name and renamed when complete, so that a killed build is never taken for a root file system.
"""

import concurrent.futures
import configparser
import hashlib
import os
import shlex
import shutil
import time
from pathlib import Path

from riglib import paths
from riglib.run import run, say
from riglib.state import load, lock

SUITE = "forky"
"""Debian testing: kernels from 6.16 need CRIU 4.2 as soon as a task holds an INET socket."""

REQUIREMENTS = ("paramiko", "cryptography", "pyroute2", "blake3", "zstandard", "pybtrfs")
"""Taken only where setup.cfg does not (yet) list the run-time dependencies."""

PROVISION = Path(paths.VAGRANT, "provision.sh")
INITTAB = Path(paths.VAGRANT, "riglib/inittab")
CACHE = Path(paths.CACHE)
GUEST_PACKAGES = ("redis-server", "python3")

LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")


def requirements() -> list[str]:
    """Return migrator's run-time dependencies, as setup.cfg lists them."""
    config = configparser.ConfigParser()
    config.read(Path(paths.TREE, "setup.cfg"), encoding="utf-8")
    listed = config.get("options", "install_requires", fallback="")
    return [line.strip() for line in listed.splitlines() if line.strip()] or list(REQUIREMENTS)


def key(*parts: str) -> str:
    """Return the hash that names what is made from these parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def host_root() -> Path:
    """Return where the root file system of the hosts is, or is to be."""
    made_by = [PROVISION.read_text(encoding="utf-8"), INITTAB.read_text(encoding="utf-8")]
    return CACHE / f"host-{key(SUITE, *made_by, *LEFT_OUT, *requirements())}"


def guest_root() -> Path:
    """Return where the root file system of Debian guests is, or is to be."""
    return CACHE / f"guest-{key(SUITE, *LEFT_OUT, *GUEST_PACKAGES)}"


def ensure(state_lock: int) -> tuple[Path, Path]:
    """Build what is not cached yet; return the roots of hosts and guests.

    The builders inherit the rig's lock: no later `up` meets one that outlived us.
    """
    host, guest = host_root(), guest_root()
    if host.is_dir() and guest.is_dir():
        return host, guest
    with lock(CACHE / ".lock", timeout=1200) as cache_lock:
        missing = [root for root in (host, guest) if not root.is_dir()]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            builds = [pool.submit(build, root, root == host, (state_lock, cache_lock)) for root in missing]
            for done in builds:
                done.result()
        remove_old(host, guest)
    return host, guest


def build(root: Path, is_host: bool, locks: tuple[int, int]) -> None:
    """Make one root file system, in namespaces of its own that end with the builder."""
    started = time.monotonic()
    say(f"building {root} (once; Debian {SUITE})")
    unfinished = CACHE / f".building-{root.name}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
    # The testing suite's Release file is not refreshed in time on every mirror.
    command.append('--aptopt=Acquire::Check-Valid-Until "false"')
    command += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    if is_host:
        packages = run(["sh", str(PROVISION), "list"]).split()
        command += [f"--include={','.join(packages)}"]
        command += [f"--customize-hook=copy-in {PROVISION} /tmp", f"--customize-hook={pip_certificates()}"]
        for phase in ("lxc", "ssh", f"venv {shlex.join(requirements())}"):
            command.append(f'--customize-hook=chroot "$1" env SSL_CERT_FILE=/tmp/ca.crt sh /tmp/provision.sh {phase}')
        command.append('--customize-hook=rm -f "$1"/tmp/* "$1"/etc/ssh/ssh_host_*')
        command.append(f"--customize-hook=copy-in {INITTAB} /etc")
    else:
        command.append(f"--include={','.join(GUEST_PACKAGES)}")
    # A builder that outlived us would hold the locks: it is killed with us, and its namespaces with it.
    namespaces = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    whole = [*namespaces, *command, SUITE, str(unfinished)]
    run(whole, timeout=1200, environment={"PIP_FIND_LINKS": ""}, pass_fds=locks)
    unfinished.rename(root)
    say(f"built {root} in {time.monotonic() - started:.0f} s")


def pip_certificates() -> str:
    """Return the hook that lends the machine's certificates to pip: a local mirror may have its own authority."""
    machine = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    return f'cp "{machine}" "$1/tmp/ca.crt"'


def remove_old(*kept: Path) -> None:
    """Remove what was built from earlier versions, unless a rig still runs on it."""
    used = set(kept)
    for directory in Path("/run").glob("migrator-rig*"):
        used.update(Path(root) for root in load(str(directory)).get("roots", ()))
    for root in (*CACHE.glob("host-*"), *CACHE.glob("guest-*"), *CACHE.glob(".building-*")):
        if root not in used:
            shutil.rmtree(root, ignore_errors=True)
