# SPDX-License-Identifier: GPL-2.0-or-later
"""How virtual machines are run: by KVM if it has shown that it can, else by QEMU's translator (TCG).

/dev/kvm proves nothing: it may be there for guests of another kind, and Debian's kernel dies under it at once. So a
kernel is booted with it, once after each boot of this machine.
"""

import contextlib
import hashlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from riglib import paths
from riglib.run import run, say
from riglib.state import write

QEMU = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
RECORD = Path(paths.CACHE, "accelerator.json")
LIMIT = 60.0
"""Seconds that the kernel has to come to its first program; with a working KVM it takes less than two."""
REACHED = b"Run /init as init process"


@dataclass(frozen=True)
class Accelerator:
    """QEMU's options for it, and the model of CPU that is used unless another is asked for."""

    name: str
    options: tuple[str, ...]
    cpu: str


KVM = Accelerator("kvm", ("-accel", "kvm"), "host")
# Without its `-cx16`, guests panic under Debian 12's QEMU 7.2 in every third boot.
TCG = Accelerator("tcg", ("-accel", "tcg,thread=multi,tb-size=512"), "EPYC,-cx16")


def choose(kernel: Path, initrd: Path) -> Accelerator:
    """Return what machines are run with here; the answer is remembered until this machine, QEMU or kernel changes."""
    if not DEVICE.exists():
        return TCG
    made = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), version()]
    made += [str(file.stat().st_mtime_ns) for file in (kernel, initrd)]
    asked = hashlib.sha256("\0".join(made).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(RECORD.read_text(encoding="ascii"))
        if known["asked"] == asked:
            return KVM if known["works"] else TCG
    works = boots(KVM, kernel, initrd)
    write(RECORD, json.dumps({"asked": asked, "works": works}))
    if not works:
        say("KVM does not boot Debian's kernel here: machines run without it, about ten times slower")
    return KVM if works else TCG


def version() -> str:
    """Return QEMU's version, as it tells it itself."""
    return run([QEMU, "--version"]).partition("\n")[0]


def boots(accelerator: Accelerator, kernel: Path, initrd: Path, *, limit: float = LIMIT) -> bool:
    """Tell whether a kernel comes to its first program. It has neither disks nor a network."""
    command = ["setpriv", "--pdeathsig", "KILL", QEMU, "-nodefaults", "-no-user-config", "-display", "none",
               *accelerator.options, "-cpu", accelerator.cpu, "-m", "512", "-no-reboot", "-serial", "stdio",
               "-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 loglevel=7"]
    said = b""
    read, write_end = os.pipe()
    with (
        open(read, "rb", buffering=0) as output,  # noqa: PTH123
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.DEVNULL) as qemu,
    ):
        os.close(write_end)
        deadline = time.monotonic() + limit
        try:
            while REACHED not in said:
                ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
                got = output.read(1 << 16) if ready else b""
                if not got:
                    return False
                said += got
        finally:
            qemu.kill()
    return True
