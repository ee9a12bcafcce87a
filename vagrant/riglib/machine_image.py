# SPDX-License-Identifier: GPL-2.0-or-later
"""What the virtual machines are started from, cached like the root file systems of `rootfs`.

- `machine-HASH/`: Debian 13 with its own packages, as a folder, with kernel and initrd beside it;
- `system-HASH/`: the first disk, Debian with migrator's package, from the working tree;
- `debian-disk-HASH/`: the root file system of Debian guests, as a disk;
- `booted-HASH/`: such a machine as it is once it has booted, its memory and what it has written to its disk. Every
  machine is started from there, which takes two seconds instead of thirty, and then told who it is (machines.py).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from riglib import accelerator, deb, paths, rootfs
from riglib.accelerator import Accelerator
from riglib.errors import RigError
from riglib.guest_roots import DAY
from riglib.install import digest
from riglib.rootfs import CACHE, PROVISION, STABLE, key
from riglib.run import run, say
from riglib.state import lock

FILES = Path(paths.VAGRANT, "machine")
"""What is added to Debian: the other end of `rig exec`, and the network at boot."""
UNITS = ("rig-agent.service", "rig-network.service")
IN_MACHINE = "/usr/local/lib/rig"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("systemd-sysv", "udev", "dbus", "libpam-systemd", "apparmor", "lxcfs")
"""What an installed Debian with LXC has and mmdebstrap's `minbase` lacks."""
PACKAGE_MARK = "package"
"""File in IN_MACHINE that names the installed package."""
SIZE, GUESTS_SIZE = "4G", "2G"
FSTAB = """/dev/vda / ext4 errors=remount-ro 0 1
/dev/vdc /opt/rig/debian ext4 ro,nofail 0 0
"""
HIDDEN_UNITS = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "man-db.timer",
                "dpkg-db-backup.timer")  # fmt: skip
"""They would begin whenever a machine is started from the cache, as the clock has jumped."""

INSTALLED = """root=$1 layers=$2
mount -t tmpfs tmpfs "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay -o "lowerdir=$root,upperdir=$layers/upper,workdir=$layers/work" overlay "$layers/root"
cp "$3" "$layers/root/tmp/migrator.deb"
unshare --mount sh -euc 'mount -t proc proc "$0/proc"; exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    DEBIAN_FRONTEND=noninteractive chroot "$0" dpkg -i /tmp/migrator.deb >/dev/null' "$layers/root"
rm "$layers/root/tmp/migrator.deb"
echo "$5" >"$layers/root$4"
"""
"""Installs migrator in a copy of a root file system, in memory: root, copy, package, the mark and its text."""


@dataclass(frozen=True)
class Base:
    """A Debian that can be booted."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def root(self) -> Path:
        return self.folder / "root"


@dataclass(frozen=True)
class Booted:
    """A machine that has booted: `disk` is what it has written since, a layer above `system`."""

    base: Base
    folder: Path
    system: Path
    guests: Path
    accelerator: Accelerator
    cpu: str

    @property
    def disk(self) -> Path:
        return self.folder / "system.qcow2"

    @property
    def memory(self) -> Path:
        return self.folder / "memory"


def base(suite: str = STABLE) -> Base:
    """Return Debian 13 with the kernel of a suite: its own, or the newer one of its backports. Make it if needed."""
    files = [file.read_text(encoding="utf-8") for file in (PROVISION, *sorted(FILES.iterdir()))]
    needs = deb.fields("Depends")
    made_from = (suite, STABLE, KERNEL, *PACKAGES, needs, SIZE, FSTAB, *HIDDEN_UNITS, *rootfs.LEFT_OUT, *files)
    return Base(ensure(f"machine-{key(*made_from)}", lambda folder, locks: build_base(folder, suite, needs, locks)))


def build_base(folder: Path, suite: str, needs: str, locks: tuple[int, ...]) -> None:
    """Make a Debian that boots: kernel, initrd and the file system of its disk."""
    packages = [*PACKAGES, *run(["sh", str(PROVISION), "list"]).split()]
    inside = 'chroot "$1"'
    kernel = []
    if suite == STABLE:
        packages.append(KERNEL)
    else:  # from the same mirror
        kernel = [
            f'sed "s/ {STABLE} / {suite} /" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/kernel.list"',
            f"{inside} apt-get update -q >/dev/null",
            f"{inside} apt-get install -y -q --no-install-recommends {KERNEL}/{suite} >/dev/null",
        ]
    steps = [
        *kernel,
        f"copy-in {PROVISION} /tmp",
        *(f"{inside} sh /tmp/provision.sh {phase}" for phase in ("lxc", "ssh")),
        f"{inside} apt-get satisfy -y -q --no-install-recommends '{needs}' >/dev/null",
        f'mkdir -p "$1{IN_MACHINE}" "$1/opt/rig/debian" "$1/etc/rig"',
        *(f"copy-in {file} {IN_MACHINE}" for file in sorted(FILES.iterdir()) if file.name not in UNITS),
        *(f"copy-in {FILES / unit} /etc/systemd/system" for unit in UNITS),
        f"{inside} systemctl -q enable {' '.join(UNITS)}",
        f"{inside} systemctl -q mask {' '.join(HIDDEN_UNITS)}",
        # It has no keys yet.
        f"{inside} systemctl -q disable ssh",
        f"printf '{FSTAB}' >\"$1/etc/fstab\"".replace("\n", "\\n"),
        # Empty, not missing: then it gets an identity when it boots, but is not taken for one that has never booted.
        ': >"$1/etc/machine-id"; rm -rf "$1"/tmp/* "$1"/etc/ssh/ssh_host_*',
    ]
    made = Base(folder)
    left_out = [f"--dpkgopt=path-exclude={path}" for path in rootfs.LEFT_OUT]
    hooks = [f"--customize-hook={step}" for step in steps]
    rootfs.mmdebstrap("--format=directory", *left_out, f"--include={','.join(packages)}", *hooks, STABLE,
                      str(made.root), locks=locks)  # fmt: skip
    shutil.copyfile(made.root / "vmlinuz", made.kernel)
    shutil.copyfile(made.root / "initrd.img", made.initrd)


def system_disk(made: Base) -> Path:
    """Return the first disk, with migrator installed: in the machine, that would take a minute at every start."""

    identity = package_identity()

    def fill(folder: Path, locks: tuple[int, ...]) -> None:
        layers = folder / "layers"
        layers.mkdir()
        words = [made.root, layers, deb.package(), f"{IN_MACHINE}/{PACKAGE_MARK}", identity]
        make = ["unshare", "--mount", "sh", "-euc", INSTALLED + 'shift 5\nexec "$@"', "sh", *map(str, words)]
        run([*make, *mkfs(layers / "root", folder / "disk.ext4", SIZE)], timeout=600, pass_fds=locks)
        layers.rmdir()

    return ensure(f"system-{key(made.folder.name, identity, SIZE, INSTALLED)}", fill) / "disk.ext4"


def package_identity() -> str:
    """Return a digest of what migrator's package is built from."""
    return digest(deb.source_files())


def mkfs(root: Path, disk: Path, size: str) -> list[str]:
    """Return what makes a file system from a folder, complete: otherwise the kernel would go on making it later."""
    options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(root)]
    return ["setpriv", "--pdeathsig", "KILL", "mkfs.ext4", *options, str(disk), size]


def fill_disk(root: Path, disk: Path, locks: tuple[int, ...]) -> None:
    """Make a disk of a folder."""
    run(mkfs(root, disk, GUESTS_SIZE), timeout=600, pass_fds=locks)


def guests_disk(root: Path) -> Path:
    """Return the disk with the root file system of Debian guests; make it if needed."""
    folder = ensure(f"debian-disk-{root.name.rpartition('-')[2]}",
                    lambda folder, locks: fill_disk(root, folder / "disk.ext4", locks))  # fmt: skip
    return folder / "disk.ext4"


def booted(made: Base, system: Path, guests: Path, cpu: str, boot: "Callable[[Booted], None]", made_by: str) -> Booted:
    """Return a machine that has booted; let `boot` boot it if needed.

    `made_by` is what else decides how it comes out, such as QEMU's options.
    """
    chosen = accelerator.choose(made.kernel, made.initrd)
    model = cpu or chosen.cpu
    parts = (system.parent.name, guests.parent.name, chosen.name, model, accelerator.version(), made_by)

    def fill(folder: Path, _locks: tuple[int, ...]) -> None:
        boot(Booted(made, folder, system, guests, chosen, model))

    return Booted(made, ensure(f"booted-{key(*parts)}", fill), system, guests, chosen, model)


def ensure(name: str, fill: Callable[[Path, tuple[int, ...]], None]) -> Path:
    """Return a folder of the cache; let `fill` make it if it is not there.

    With a lock of their own: a boot takes long, and nobody who only wants a root file system shall wait for it.

    Those of its kind that nobody has used for a day are removed then: another working tree may use another version.
    """
    wanted = CACHE / name
    if not wanted.is_dir():
        with lock(CACHE / ".lock-machines", timeout=1200) as cache_lock:
            if not wanted.is_dir():
                started = time.monotonic()
                say(f"building {wanted} (once)")
                # Removed by whoever builds next if we are killed.
                unfinished = Path(tempfile.mkdtemp(prefix=f".making-{name}-", dir=CACHE))
                try:
                    fill(unfinished, (cache_lock,))
                    unfinished.chmod(0o755)
                    unfinished.rename(wanted)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                remove_old(name.rpartition("-")[0], wanted)
                say(f"built {wanted} in {time.monotonic() - started:.0f} s, {used(wanted) >> 20} MiB")
    os.utime(wanted)
    return wanted


def remove_old(kind: str, wanted: Path) -> None:
    """Remove what has not been used for a day, and what a killed builder has left."""
    for other in [*CACHE.glob(f"{kind}-*"), *CACHE.glob(f".making-{kind}-*")]:
        if other != wanted and (other.name.startswith(".") or time.time() - other.stat().st_mtime > DAY):
            shutil.rmtree(other, ignore_errors=True)


def used(folder: Path) -> int:
    """Return how many bytes the files of a folder take."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def check_programs() -> None:
    """Raise RigError if a program is missing."""
    for program in (accelerator.QEMU, "qemu-img", "mkfs.ext4"):
        if not shutil.which(program):
            raise RigError(f"{program} is missing: virtual machines need it", hint="make vm-packages")
