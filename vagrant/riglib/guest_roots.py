# SPDX-License-Identifier: GPL-2.0-or-later
"""Cached root file systems for guests with an init of their own, as archives.

Each is built when a guest first needs it, so that those who make no such guest do not have to wait for it. Like the
roots of `rootfs`, it is named after a hash of everything that it is made from, and gets that name when it is complete.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from riglib import paths
from riglib.rootfs import CACHE, LEFT_OUT, STABLE, key, mmdebstrap
from riglib.run import say
from riglib.state import lock

SCRIPTS = Path(paths.VAGRANT, "roots")
LLVM = ("/usr/lib/*/libLLVM*", "/usr/lib/*/libz3*")
"""The JIT compiler of PostgreSQL: a third of the whole archive, and switched off in it."""
DAY = 86400
COUNTER = Path(paths.VAGRANT, "guests/counter.sh")


@dataclass(frozen=True)
class GuestRoot:
    """What a root file system is made from."""

    suite: str
    packages: tuple[str, ...]
    script: str
    """File in SCRIPTS that is run in it once the packages are installed."""


OLD_STABLE = "bookworm"
"""Debian 12."""

SYSTEMD = (
    *("systemd-sysv", "libpam-systemd", "systemd-resolved", "dbus", "dbus-user-session", "cron", "login"),
    *("openssh-server", "nginx", "redis-server"),
    *("iproute2", "iputils-ping", "less", "netbase", "procps", "tzdata"),
)
INIT_SCRIPTS = ("openssh-server", "nginx-light", "iproute2", "login", "netbase", "procps")
ROOTS = {
    "systemd": GuestRoot(STABLE, (*SYSTEMD, "postgresql-17"), "systemd.sh"),
    "systemd12": GuestRoot(OLD_STABLE, (*SYSTEMD, "postgresql-15"), "systemd.sh"),
    "sysvinit": GuestRoot(STABLE, (*INIT_SCRIPTS, "sysvinit-core", "initscripts"), "init_scripts.sh"),
    "openrc": GuestRoot(STABLE, (*INIT_SCRIPTS, "openrc"), "init_scripts.sh"),
    "tini": GuestRoot(STABLE, ("tini", "nginx-light", "procps"), "application.sh"),
    "runit": GuestRoot(STABLE, ("runit", "procps"), "application.sh"),
    "node": GuestRoot(STABLE, ("tini", "nodejs", "procps"), "application.sh"),
}


def archive(name: str) -> Path:
    """Return the path of the archive of a root file system, whether it exists or not."""
    made = ROOTS[name]
    script = (SCRIPTS / made.script).read_text(encoding="utf-8")
    counter = COUNTER.read_text(encoding="utf-8")
    return CACHE / f"{name}-{key(made.suite, *LEFT_OUT, *LLVM, *made.packages, script, counter)}.tar"


def ensure(name: str) -> Path:
    """Return the archive of a root file system; build it first if it does not exist."""
    wanted = archive(name)
    if not wanted.exists():
        with lock(CACHE / ".lock", timeout=1200) as cache_lock:
            if not wanted.exists():
                build(name, wanted, cache_lock)
    wanted.touch()
    return wanted


def build(name: str, wanted: Path, cache_lock: int) -> None:
    """Build a root file system, and remove archives of it that have not been used for a day.

    Not at once, since another working tree may use another version.
    """
    started = time.monotonic()
    made = ROOTS[name]
    say(f"building {wanted} (once; Debian {made.suite})")
    for killed in CACHE.glob(f".building-{name}-*.tar"):
        killed.unlink()
    unfinished = CACHE / f".building-{wanted.name}"
    mmdebstrap(
        "--format=tar",
        *(f"--dpkgopt=path-exclude={path}" for path in (*LEFT_OUT, *LLVM)),
        f"--include={','.join(made.packages)}",
        f"--customize-hook=copy-in {COUNTER} /usr/local/lib",
        f"--customize-hook=copy-in {SCRIPTS / made.script} /tmp",
        f'--customize-hook=chroot "$1" sh /tmp/{made.script}',
        '--customize-hook=rm -rf "$1"/tmp/* "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*',
        made.suite,
        str(unfinished),
        locks=(cache_lock,),
    )
    unfinished.rename(wanted)
    for other in CACHE.glob(f"{name}-*.tar"):
        if time.time() - other.stat().st_mtime > DAY:
            other.unlink()
    say(f"built {wanted} in {time.monotonic() - started:.0f} s, {wanted.stat().st_size >> 20} MiB")
