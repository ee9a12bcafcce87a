# SPDX-License-Identifier: GPL-2.0-or-later
"""The cached root file systems of guests with an init of their own: archives, built when a guest first needs one.

Nobody pays for them without making such a guest. Like the roots of `rootfs`, each is named after a hash of what it is
made from, and renamed when complete.
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
"""PostgreSQL's query compiler, a third of the whole; it is switched off."""
DAY = 86400
COUNTER = Path(paths.VAGRANT, "guests/counter.sh")


@dataclass(frozen=True)
class GuestRoot:
    """What one of them is made from."""

    suite: str
    packages: tuple[str, ...]
    script: str
    """In SCRIPTS: runs in it once its packages are installed."""


OLD_STABLE = "bookworm"
"""Debian 12."""

SYSTEMD = (
    *("systemd-sysv", "libpam-systemd", "systemd-resolved", "dbus", "dbus-user-session", "cron", "login"),
    *("openssh-server", "nginx", "redis-server"),
    *("iproute2", "iputils-ping", "less", "netbase", "procps", "tzdata"),
)
ROOTS = {
    "systemd": GuestRoot(STABLE, (*SYSTEMD, "postgresql-17"), "systemd.sh"),
    "systemd12": GuestRoot(OLD_STABLE, (*SYSTEMD, "postgresql-15"), "systemd.sh"),
}


def archive(name: str) -> Path:
    """Return where the archive of a root file system is, or is to be."""
    made = ROOTS[name]
    script = (SCRIPTS / made.script).read_text(encoding="utf-8")
    counter = COUNTER.read_text(encoding="utf-8")
    return CACHE / f"{name}-{key(made.suite, *LEFT_OUT, *LLVM, *made.packages, script, counter)}.tar"


def ensure(name: str) -> Path:
    """Return the archive of a root file system, built if it does not exist yet."""
    wanted = archive(name)
    if not wanted.exists():
        with lock(CACHE / ".lock", timeout=1200) as cache_lock:
            if not wanted.exists():
                build(name, wanted, cache_lock)
    wanted.touch()
    return wanted


def build(name: str, wanted: Path, cache_lock: int) -> None:
    """Make one, and remove those that nobody has used for a day: another working tree may have another version."""
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
