# SPDX-License-Identifier: GPL-2.0-or-later
"""The cached root file systems: for all rig hosts, for hosts by the README, for guests that need more than busybox.

Each is a directory under /var/cache/migrator-rig whose name ends in a hash of what it is made from. It is built under
another name and renamed when complete, so that a killed build is never taken for a root file system.
"""

import concurrent.futures
import configparser
import hashlib
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from riglib import page, paths
from riglib.run import run, say
from riglib.state import load, lock

SUITE = "forky"
"""Debian testing: kernels from 6.16 on need CRIU 4.2 as soon as a task holds an INET socket."""

STABLE = "trixie"
"""Debian 13, which the page is written for: it has to have every package that is named there."""

REQUIREMENTS = ("paramiko", "cryptography", "pyroute2", "blake3", "zstandard", "pybtrfs")
"""Used only if setup.cfg does not (yet) list the run-time dependencies."""

PROVISION = Path(paths.VAGRANT, "provision.sh")
INITTAB = Path(paths.VAGRANT, "riglib/inittab")
CACHE = Path(paths.CACHE)
GUEST_PACKAGES = ("redis-server", "python3")

DEBIAN_HAS = ("ifupdown", "systemd")
"""What every installed Debian has but mmdebstrap's `minbase` lacks, and is needed here. Nothing else is added to what
the page names, not even recommended packages: otherwise it would pass although something is missing from it."""

MANUAL = "manual"
"""The extra of setup.cfg that the page installs as well."""

WHEELS = "/opt/rig/wheels"
"""What pip finds on hosts by the README, which have no network: migrator's dependencies, and what it is built with."""

LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")


FOR_ALL_HOSTS = (
    '--customize-hook=rm -rf "$1"/tmp/* "$1"/etc/ssh/ssh_host_*',
    f"--customize-hook=copy-in {INITTAB} /etc",
)


def requirements(*extras: str) -> list[str]:
    """Return migrator's run-time dependencies, as setup.cfg lists them, and those of the named extras."""
    config = configparser.ConfigParser()
    config.read(Path(paths.TREE, "setup.cfg"), encoding="utf-8")
    listed = config.get("options", "install_requires", fallback="").split("\n")
    found = [line.strip() for line in listed if line.strip()] or list(REQUIREMENTS)
    for extra in extras:
        found += [line.strip() for line in config["options.extras_require"][extra].splitlines() if line.strip()]
    return found


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


def readme_root() -> Path:
    """Return where the root file system of hosts by the README is, or is to be."""
    named = readme_packages()
    parts = (SUITE, STABLE, *DEBIAN_HAS, *named, INITTAB.read_text(encoding="utf-8"), *LEFT_OUT, *requirements(MANUAL))
    return CACHE / f"readme-{key(*parts)}"


def readme_packages() -> list[str]:
    """Return the Debian packages that the page tells its reader to install."""
    lines = page.packages(page.read())
    return sorted({word for line in lines for word in line.split()[2:] if not word.startswith("-")})


def ensure(state_lock: int, *, by_readme: bool = False) -> list[Path]:
    """Build what is not cached yet; return the roots of hosts and guests, and of hosts by the README if requested.

    The builders inherit the rig's lock: no later `up` meets one that outlived us.
    """
    host, guest, readme = host_root(), guest_root(), readme_root()
    wanted = [host, guest, *([readme] if by_readme else [])]
    if all(root.is_dir() for root in wanted):
        return wanted
    with lock(CACHE / ".lock", timeout=1200) as cache_lock:
        locks = (state_lock, cache_lock)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            hooks = {host: host_hooks, guest: guest_hooks}
            builds = [pool.submit(build, root, hooks[root](), locks) for root in (host, guest) if not root.is_dir()]
            if by_readme and not readme.is_dir():
                builds.append(pool.submit(check_stable, locks))
            for done in builds:
                done.result()
        if by_readme and not readme.is_dir():  # takes its init from the other
            build(readme, readme_hooks(host), locks)
        remove_old(host, guest, readme)
    return wanted


def build(root: Path, options: list[str], locks: tuple[int, int]) -> None:
    """Make one root file system."""
    started = time.monotonic()
    say(f"building {root} (once; Debian {SUITE})")
    unfinished = CACHE / f".building-{root.name}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    left_out = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    mmdebstrap("--format=directory", *left_out, *options, SUITE, str(unfinished), locks=locks)
    unfinished.rename(root)
    say(f"built {root} in {time.monotonic() - started:.0f} s")


def mmdebstrap(*arguments: str, locks: tuple[int, ...]) -> None:
    """Run mmdebstrap in namespaces of its own.

    If it outlived us it would hold the locks: it is killed with us, and its namespaces with it.
    """
    namespaces = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
    # Not every mirror refreshes the testing suite's Release file in time.
    command.append('--aptopt=Acquire::Check-Valid-Until "false"')
    whole = [*namespaces, "--mount-proc", *command, *arguments]
    run(whole, timeout=1200, environment={"PIP_FIND_LINKS": ""}, pass_fds=locks)


def host_hooks() -> list[str]:
    """Return what makes a rig host out of Debian."""
    packages = run(["sh", str(PROVISION), "list"]).split()
    options = [f"--include={','.join(packages)}"]
    options += [f"--customize-hook=copy-in {PROVISION} /tmp", f"--customize-hook={pip_certificates()}"]
    for phase in ("lxc", "ssh", f"venv {shlex.join(requirements())}"):
        options.append(f'--customize-hook=chroot "$1" env SSL_CERT_FILE=/tmp/ca.crt sh /tmp/provision.sh {phase}')
    return [*options, *FOR_ALL_HOSTS]


def guest_hooks() -> list[str]:
    """Return what makes a guest out of Debian."""
    return [f"--include={','.join(GUEST_PACKAGES)}"]


def readme_hooks(host: Path) -> list[str]:
    """Return what makes a host by the README out of Debian, up to the point where its lines need no network any more.

    Those lines are typed at each start: see by_readme.py. Its init is taken from the other hosts' root: busybox is a
    package that the README may have to name.
    """
    download = f"/root/pip/bin/pip download -q -d {WHEELS} setuptools wheel {shlex.join(requirements(MANUAL))}"
    steps = [
        f'mkdir -p "$1/opt/rig" && cp {host}/bin/busybox "$1/opt/rig/"',
        pip_certificates(),
        f'chroot "$1" env SSL_CERT_FILE=/tmp/ca.crt sh -c "python3 -m venv /root/pip && {download} && rm -r /root/pip"',
        f'printf "[global]\\nno-index = true\\nfind-links = {WHEELS}\\n" >"$1/etc/pip.conf"',
        # Nobody is there to answer questions.
        'echo \'APT::Get::Assume-Yes "true";\' >"$1/etc/apt/apt.conf.d/rig"',
    ]
    included = f"--include={','.join([*DEBIAN_HAS, *readme_packages()])}"
    return [included, *(f"--customize-hook={step}" for step in steps), *FOR_ALL_HOSTS]


def check_stable(locks: tuple[int, int]) -> None:
    """Raise CommandFailed if Debian 13 lacks a package that the page names."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".building-") as folder:
        mmdebstrap("--simulate", f"--include={','.join(readme_packages())}", STABLE, folder, locks=locks)


def pip_certificates() -> str:
    """Return the hook that lends the machine's certificates to pip: a local mirror may have its own authority."""
    machine = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    return f'cp "{machine}" "$1/tmp/ca.crt"'


def remove_old(*kept: Path) -> None:
    """Remove what was built from earlier versions, unless a rig still runs on it."""
    used = set(kept)
    for directory in Path("/run").glob("migrator-rig*"):
        used.update(Path(root) for root in load(str(directory)).get("roots", ()))
    for kind in ("host-*", "guest-*", "readme-*", ".building-*"):
        for root in set(CACHE.glob(kind)) - used:
            shutil.rmtree(root, ignore_errors=True)
