# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package of the working tree, built and tried in Debians of their own.

    vagrant/deb [SUITE [ARCHITECTURE]]    build/deb/SUITE/migrator_VERSION_ARCHITECTURE.deb, for Debian 13 and machines
                                          like this one if none are named; for others in build/deb/SUITE-ARCHITECTURE

Whatever is installed on this machine, the package is built in a root file system that has debian/control's
Build-Depends and the wheels of debian/*wheels.txt, without a network. Like the roots of `rootfs`, those are made when
first needed and named after a hash of what they are made from. Nothing is written to them: they are the lower layer of
an overlay in memory, in namespaces that end with what runs in it.

Who installs the package somewhere asks `package(suite)` for it.
"""

import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from riglib import paths
from riglib.errors import CommandFailed, RigError
from riglib.guest_roots import DAY
from riglib.install import digest, package_files
from riglib.rootfs import CACHE, STABLE, key, mmdebstrap, pip_certificates
from riglib.run import run, say
from riglib.state import lock

TREE = Path(paths.TREE)
DEBIAN = TREE / "debian"
BUILT = TREE / "build/deb"
MADE_FROM = "made-from"
"""The file beside a package that has the hash of what it was built from."""
WHEELS = "/opt/wheels"
DOWNLOADED = "/var/cache/apt/archives"
DEBIAN_HAS = ("bash-completion", "man-db", "systemd")
"""What an installed Debian has, and mmdebstrap's `minbase` lacks."""
TOOLS = ("ca-certificates", "build-essential", "lintian", "faketime")
"""What is in the root for building besides debian/control's Build-Depends; the last two examine what was built."""
FILES = ("systemd", "docs", "debian")
"""What the package is made from besides the program itself."""

PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}
"""What debian/wheels.txt has wheels for: Debian's names of the architectures, and the kernel's."""

PIP = ("download", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--require-hashes")

LAYERS = """set -eu
root=$1 layers=$2
mount -t tmpfs -o mode=755 tmpfs "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay -o "lowerdir=$root,upperdir=$layers/upper,workdir=$layers/work" overlay "$layers/root"
mount -t proc proc "$layers/root/proc"
mount --rbind /dev "$layers/root/dev"
mkdir "$layers/root/given"
mount --bind "$3" "$layers/root/given"
cd /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \\
    chroot "$layers/root" sh -euc "$4"
"""

BUILD = """mkdir -p {where}
tar -x --no-same-owner -f /given/tree.tar -C {where}
cd {where}
{under} dpkg-buildpackage -b -us -uc {options} >/given/build.log 2>&1
cp ../*.deb ../*.buildinfo ../*.changes /given
"""


def fields(name: str) -> str:
    """Return what a field of debian/control has, of the package that is built, without what is only known then."""
    text = re.sub(r"^#.*\n", "", (DEBIAN / "control").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = re.findall(rf"^{name}:((?:.*\n)(?: .*\n)*)", text, re.MULTILINE)
    words = (word.strip() for word in found.split(","))
    return ", ".join(word for word in words if word and "${" not in word)


def build_root(suite: str = STABLE, other: str = "") -> Path:
    """Return the root file system that the package is built in, perhaps for another architecture than this machine's.

    It is made first if it is not there.
    """
    lists = sorted(DEBIAN.glob("*wheels.txt"))
    wheels = "".join(file.read_text(encoding="utf-8") for file in lists)
    named = " ".join(f"-r /tmp/{file.name}" for file in lists)
    download = f'chroot "$1" env PIP_CERT=/tmp/ca.crt python3 -m pip {" ".join(PIP)} -d {WHEELS}'
    return ensure("deb-build", f"{suite}-{other}" if other else suite, suite, (fields("Build-Depends"), wheels), [
        f"--include={','.join(TOOLS)}",
        f"--customize-hook={pip_certificates()}",
        *(f"--customize-hook=copy-in {file} /tmp" for file in lists),
        f"--customize-hook=chroot \"$1\" apt-get satisfy -y -q --no-install-recommends '{fields('Build-Depends')}'",
        f"--customize-hook={download} {named}",
        *(foreign(other, download) if other else ()),
        f'--customize-hook=printf "[global]\\nno-index = true\\nfind-links = {WHEELS}\\n" >"$1/etc/pip.conf"',
    ])


def foreign(architecture: str, download: str) -> list[str]:
    """Return what has to be there for a package of another architecture: nothing of it is run, its wheels are built."""
    machine = PLATFORMS[architecture]
    libraries = ",".join(f"{library}:{architecture}" for library in ("libgcc-s1", "libpython3-stdlib"))
    platforms = f"--platform manylinux2014_{machine} --platform manylinux_2_28_{machine}"
    return [
        f"--architectures={native()},{architecture}",
        f"--include={libraries},binutils-{machine.replace('_', '-')}-linux-gnu",
        f"--customize-hook={download} {platforms} -r /tmp/wheels.txt",
    ]


def native() -> str:
    """Return Debian's name of this machine's architecture."""
    return run(["dpkg", "--print-architecture"]).strip()


def fresh_root(suite: str = STABLE) -> Path:
    """Return a new Debian where apt has downloaded all that comes along with the package, and installed none of it."""
    wanted = f"{fields('Depends')}, {fields('Recommends')}"
    # As apt does it by itself, and not while mmdebstrap uses it.
    satisfy = "apt-get satisfy -y -q --download-only -o APT::Install-Recommends=true"
    return ensure("deb-fresh", suite, suite, (wanted, *DEBIAN_HAS), [
        f"--include={','.join(DEBIAN_HAS)}",
        "--skip=cleanup/apt",
        f"--customize-hook=chroot \"$1\" {satisfy} '{wanted}'",
    ])


def ensure(kind: str, name: str, suite: str, made_from: tuple[str, ...], options: list[str]) -> Path:
    """Return a cached root file system; those of other working trees stay until nobody has used them for a day."""
    root = CACHE / f"{kind}-{name}-{key(suite, *made_from, *options)}"
    if not root.is_dir():
        with lock(CACHE / ".lock", timeout=1200) as cache_lock:
            if not root.is_dir():
                started = time.monotonic()
                say(f"building {root} (once; Debian {suite})")
                unfinished = CACHE / f".building-{root.name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                made = ["--format=directory", *options, '--customize-hook=rm -rf "$1"/tmp/*', suite, str(unfinished)]
                mmdebstrap(*made, locks=(cache_lock,))
                unfinished.rename(root)
                for other in CACHE.glob(f"{kind}-*"):
                    if time.time() - other.stat().st_mtime > DAY:
                        shutil.rmtree(other, ignore_errors=True)
                say(f"built {root} in {time.monotonic() - started:.0f} s")
    os.utime(root)
    return root


def enter(root: Path, given: Path, script: str, *, timeout: float = 900) -> str:
    """Run a script in a copy of a root file system that is gone afterwards, without a network; return its output.

    The folder `given` is its /given, and all that stays of it.
    """
    namespaces = ["setpriv", "--pdeathsig", "KILL",
                  "unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    with temporary() as layers:
        return run([*namespaces, "sh", "-c", LAYERS, "sh", str(root), layers, str(given), script], timeout=timeout)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is gone at the end of its context; whoever kills us finds it where `make clean` does."""
    BUILT.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".", dir=BUILT)


def package(suite: str = STABLE, architecture: str = "") -> Path:
    """Return the path of the package of the working tree as it is now; build it if that has not been done."""
    other = "" if architecture == native() else architecture
    if other and other not in PLATFORMS:
        raise RigError(f"there are no wheels for {other}", hint=f"one of {', '.join(PLATFORMS)}")
    target = BUILT / (f"{suite}-{other}" if other else suite)
    with lock(BUILT / f".{target.name}.lock", timeout=1200):
        made_from = key(digest(source_files()), str(build_root(suite, other)), BUILD)
        built = [*target.glob("migrator_*.deb")]
        if len(built) == 1 and (target / MADE_FROM).is_file() and (target / MADE_FROM).read_text() == made_from:
            return built[0]
        with temporary() as folder:
            made = build(suite, Path(folder), other=other)
            target.mkdir(parents=True, exist_ok=True)
            for old in target.iterdir():
                old.unlink()
            for file in made.parent.iterdir():
                if file.name not in ("tree.tar", "build.log"):
                    (target / file.name).write_bytes(file.read_bytes())
            (target / MADE_FROM).write_text(made_from)
            return target / made.name


def build(suite: str, given: Path, *, other: str = "", where: str = "/build/migrator", under: str = "") -> Path:
    """Build the package into the folder `given`; return its path. Raises RigError.

    Neither the folder in which that is done, nor the command `under` which it is done, changes one bit of it.
    """
    root = build_root(suite, other)
    # -d: what it is built with is this machine's, and need not be there for the other architecture.
    options = f"-d --host-arch {other}" if other else ""
    started = time.monotonic()
    with tarfile.open(given / "tree.tar", "w") as tar:
        for name in source_files():
            tar.add(TREE / name, name)
    try:
        enter(root, given, BUILD.format(where=where, under=under, options=options))
    except CommandFailed:
        if not (given / "build.log").exists():
            raise
        log = shutil.copy(given / "build.log", BUILT / "failed.log")
        raise RigError("the package could not be built", hint=f"tail {log}") from None
    (made,) = given.glob("migrator_*.deb")
    content = made.read_bytes()
    say(f"built {made.name} for {suite} in {time.monotonic() - started:.0f} s, {len(content) >> 10} KiB, "
        f"sha256 {hashlib.sha256(content).hexdigest()}")
    return made


def source_files() -> list[str]:
    """Return the files that the package is built from, relative to the tree."""
    found = {file for name in FILES for file in (TREE / name).rglob("*") if file.is_file() and file.suffix != ".pyc"}
    return [*package_files(), *sorted(str(file.relative_to(TREE)) for file in found)]


def main(words: list[str]) -> int:
    """Build the package, for the suite and the architecture that are named."""
    if len(words) > 2 or any(word.startswith("-") for word in words):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    if os.geteuid():
        say("error: chroot and mount need root")
        return RigError.status
    try:
        print(package(*words))
    except RigError as error:
        say(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""))
        return error.status
    return 0
