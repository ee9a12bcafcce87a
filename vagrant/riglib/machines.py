# SPDX-License-Identifier: GPL-2.0-or-later
"""The LXC hosts as virtual machines. Each runs inside of what would be that host in the rig of namespaces:

    the switch or router ── eth0 ─ br0 ─ tap0 ── the machine's eth0      in the network namespace of that host
                                          tap1 ── the machine's card for `rig exec`, which nothing else there sees

So the rest of the rig is as ever, and ending its cgroup ends the machines as well.
"""

import concurrent.futures
import contextlib
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from riglib import accelerator, deb, machine_image, network, paths
from riglib.errors import CommandFailed, RigError
from riglib.hosts import LXC_HOSTS, POOL_SIZE
from riglib.machine_exec import OURS
from riglib.machine_image import Booted
from riglib.network import Plan
from riglib.qmp import Qmp
from riglib.rootfs import STABLE
from riglib.run import inside, run, say
from riglib.state import write

MEMORY = 2048
"""MiB of each machine."""
CPUS = 2
DISK = 3 << 30
"""Bytes that a test session's two machines write, generously."""
BOOT_LIMIT = 600.0
"""Seconds. Half a minute is usual without KVM, and that much more where the machine has other things to do."""
MACS = {"hosta": "52:54:00:0a:03:02", "hostb": "52:54:00:0a:03:03"}
EXEC_MAC = "52:54:00:0a:03:01"
KERNEL_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"

QUIET = "addrgenmode none"
LINK_TO_EXEC = ["tuntap add dev tap1 mode tap", f"link set tap1 {QUIET} up", f"address add {OURS} dev tap1"]
LINK = ["tuntap add dev tap0 mode tap", f"link set tap0 {QUIET} up"]
BRIDGE_LINK = [
    "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
    f"link set br0 {QUIET} up",
    f"link set eth0 {QUIET} master br0 up",
    "link set tap0 master br0",
]
"""The namespace itself takes no part in what it passes on: it has no address there."""

SANDBOX = """ip -batch - <<LINES
$1
LINES
shift
exec "$@"
"""

IDENTITY = """set -eu
name=$1 mac=$2 now=$3
date -u -s "@$now" >/dev/null
hwclock --systohc --utc 2>/dev/null || true
# All machines come from one copy of one machine: until then they would draw the same keys.
python3 -S -c '
import fcntl, os, struct, sys
seed = bytes.fromhex(sys.stdin.read())
with open("/dev/random", "wb", 0) as random:
    fcntl.ioctl(random, 0x40085203, struct.pack("ii", 8 * len(seed), len(seed)) + seed)  # RNDADDENTROPY
    fcntl.ioctl(random, 0x5207)  # RNDRESEEDCRNG
'
echo "$name" >/etc/hostname
hostname "$name"
# They would also be taken for one and the same boot.
cat /proc/sys/kernel/random/uuid >/run/rig-boot-id
mount --bind /run/rig-boot-id /proc/sys/kernel/random/boot_id
rm -f /etc/machine-id /etc/ssh/ssh_host_* /root/.ssh/id_*
systemd-machine-id-setup >/dev/null 2>&1
ip link set dev eth0 address "$mac"
mkdir -p -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f /etc/ssh/ssh_host_ed25519_key
ssh-keygen -q -t ed25519 -N '' -C "root@$name" -f /root/.ssh/id_ed25519
mkfs.btrfs -q /dev/vdb
echo '/dev/vdb /pool btrfs noatime 0 0' >>/etc/fstab
mount /pool
systemctl enable -q ssh
systemctl restart systemd-journald ssh
"""
"""Makes a machine that was started from the cache one of its own. Input: fresh random bytes, as hexadecimal digits."""


def qemu(booted: Booted, host: str, folder: Path, run_folder: Path) -> list[str]:
    """Return the command of one machine, whose disks are in `folder`; its sockets are in `run_folder`."""
    layers = {"system": ("qcow2", folder / "system.qcow2", "off"), "pool": ("raw", folder / "pool.img", "off"),
              "guests": ("raw", booted.guests, "on")}  # fmt: skip
    command = [accelerator.QEMU, "-name", host, "-nodefaults", "-no-user-config", "-display", "none",
               *booted.accelerator.options, "-cpu", booted.cpu, "-smp", str(CPUS), "-m", str(MEMORY),
               "-kernel", str(booted.base.kernel), "-initrd", str(booted.base.initrd), "-append", KERNEL_LINE,
               "-serial", f"file:{folder}/console.log", "-qmp", f"unix:{qmp_path(run_folder, host)},server=on,wait=off",
               "-pidfile", str(run_folder / f"{host}.qemu-pid"), "-device", "virtio-rng-pci"]
    for name, (kind, file, read_only) in layers.items():
        # What a machine has written outlives its reset, flushed or not; that of this machine ends the rig anyway.
        command += ["-drive", f"if=none,id={name},format={kind},file={file},read-only={read_only},cache=unsafe",
                    "-device", f"virtio-blk-pci,drive={name}"]  # fmt: skip
    for tap, mac in (("tap0", MACS[host]), ("tap1", EXEC_MAC)):
        command += ["-netdev", f"tap,id={tap},ifname={tap},script=no,downscript=no",
                    "-device", f"virtio-net-pci,netdev={tap},mac={mac},romfile="]
    return command


def qmp_path(folder: Path, host: str) -> Path:
    """Return where a machine's QEMU listens; a socket's path may have 107 bytes."""
    return folder / f"{host}.qmp"


def ensure(guest_root: Path, *, suite: str = "", cpu: str = "") -> Booted:
    """Return what a machine is started from; make it if it is not in the cache."""
    machine_image.check_programs()
    guests = machine_image.guests_disk(guest_root)
    made_by = " ".join([str(CPUS), str(MEMORY), KERNEL_LINE, *MACS.values(), Path(__file__).read_text("utf-8")])
    made = machine_image.base(suite or STABLE)
    system = machine_image.system_disk(made)
    return machine_image.booted(made, system, guests, cpu, boot, made_by)


def boot(booted: Booted) -> None:
    """Boot a machine by itself and keep it, as it is then, in the folder of `booted`."""
    folder = booted.folder
    host = LXC_HOSTS[0]
    make_layer(booted.disk, booted.system, "raw")
    make_pool(folder)
    lines = "\n".join([*LINK_TO_EXEC, *LINK])
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-euc", SANDBOX, "sh", lines]
    with subprocess.Popen([*command, *qemu(booted, host, folder, folder)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # fmt: skip
        try:
            wait_for_answer(process, folder / "console.log")
            # `degraded` where a unit does not work in such a machine: it has booted all the same.
            command = client(process.pid, ["systemctl", "is-system-running", "--wait"])
            run(command, timeout=BOOT_LIMIT, check=False)
            run(client(process.pid, ["sync"]), timeout=BOOT_LIMIT)
            with Qmp(qmp_path(folder, host), timeout=BOOT_LIMIT) as control:
                control.save(booted.memory, timeout=BOOT_LIMIT)
                control.execute("quit")
            process.wait(BOOT_LIMIT)
        finally:
            process.kill()
    for name in ("pool.img", qmp_path(folder, host).name, f"{host}.qemu-pid"):
        (folder / name).unlink(missing_ok=True)


def make_layer(disk: Path, below: Path, kind: str) -> None:
    """Make a disk that has only what is written to it, above another of this kind, which stays as it is."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", kind, str(disk)])


def make_pool(folder: Path) -> None:
    """Make the empty disk for containers."""
    run(["truncate", "-s", POOL_SIZE, str(folder / "pool.img")])


def client(pid: int, command: Sequence[str]) -> list[str]:
    """Return what runs a command in the machine whose link is in the network namespace of process `pid`."""
    python = ["env", f"PYTHONPATH={paths.VAGRANT}", sys.executable, "-S", "-m", "riglib.machine_exec"]
    return ["nsenter", "--net", "-t", str(pid), *python, *command]


def wait_for_answer(process: subprocess.Popen[bytes], console: Path) -> None:
    """Wait until a machine runs commands; RigError if it does not come to that."""
    deadline = time.monotonic() + BOOT_LIMIT
    while True:
        if process.poll() is not None:
            told = process.stderr.read().decode("utf-8", "replace") if process.stderr else ""
            raise RigError(f"QEMU has ended: {' | '.join(told.splitlines()[-3:])}", hint="qemu-system-x86_64 --version")
        with contextlib.suppress(CommandFailed):
            run(client(process.pid, ["true"]), timeout=60)
            return
        if time.monotonic() > deadline:
            last = console.read_text("utf-8", "replace").splitlines()[-3:] if console.exists() else []
            raise RigError(f"the machine does not boot: {' | '.join(last)}")
        time.sleep(0.2)


def check_room(count: int) -> None:
    """Say what the machines will take; RigError if it is not there."""
    memory = count * (MEMORY + 512)
    say(f"{count} virtual machines: {memory} MiB of memory, up to {DISK >> 30} GiB of disk")
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(told["MemAvailable"].split()[0]) >> 10
    if free < memory:
        raise RigError(f"{memory} MiB of memory are needed, {free} MiB are available", hint="free -m")
    place = Path(paths.LIB).parent
    if shutil.disk_usage(place).free < DISK:
        raise RigError(f"{DISK >> 30} GiB of disk are needed in {place}", hint=f"df -h {place}")


def start_all(booted: dict[str, Booted], pids: dict[str, int], plan: Plan) -> None:
    """Start these machines, each from the cache, and give them what is planned for their hosts."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = [pool.submit(start_one, booted[host], host, pids[host], plan) for host in booted]
        for done in started:
            done.result()


def start_one(booted: Booted, host: str, pid: int, plan: Plan) -> None:
    """Start a machine whose host is the process `pid`."""
    network.ip(host, {host: pid}, [*LINK_TO_EXEC, *LINK, *BRIDGE_LINK])
    start(booted, host)
    identify(host)
    # In files: it has the same network after a reset.
    inside(host, ["tee", "/etc/rig/links"], text="\n".join([*plan.lines.get(host, []), ""]))
    if host in plan.rules:
        inside(host, ["tee", "/etc/rig/rules"], text=plan.rules[host])
    inside(host, ["systemctl", "start", "rig-network"], timeout=BOOT_LIMIT)


def start(booted: Booted, host: str) -> None:
    """Start a machine from the cache, in the namespace and the cgroup of its host; it has no identity yet."""
    folder = Path(paths.LIB, host)
    make_layer(folder / "system.qcow2", booted.disk, "qcow2")
    make_pool(folder)
    quoted = str(booted.memory).replace("'", "'\\''")
    command = [*qemu(booted, host, folder, Path(paths.RUN)), "-daemonize", "-incoming", f"exec:cat '{quoted}'"]
    procs = f"{paths.cgroup(host)}/init.scope/cgroup.procs"
    enter = ["sh", "-euc", 'echo 0 >"$1"; shift; exec "$@"', "sh", procs]
    run([*enter, "nsenter", "--net", "-t", str(paths.host_pid(host)), *command], timeout=BOOT_LIMIT)
    pid = int(Path(paths.RUN, f"{host}.qemu-pid").read_text(encoding="ascii"))
    write(Path(paths.machine(host)), f"{pid} {paths.start_time(pid)}\n")
    with Qmp(qmp_path(Path(paths.RUN), host)) as control:
        deadline = time.monotonic() + BOOT_LIMIT
        while control.execute("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise RigError(f"{host} does not start from {booted.folder}", hint=f"rm -r {booted.folder}")
            time.sleep(0.05)
        control.execute("cont")


def identify(host: str) -> None:
    """Give a machine that was started from the cache a name, keys and a pool of its own, and the time."""
    command = ["sh", "-c", IDENTITY, "sh", host, MACS[host], str(int(time.time()))]
    inside(host, command, text=secrets.token_hex(64), timeout=BOOT_LIMIT)


INSTALL = """set -eu
cat >/root/migrator.deb
dpkg -i /root/migrator.deb >/root/dpkg.log 2>&1 || { tail -n 3 /root/dpkg.log >&2; exit 1; }
echo "$2" >"$1"
"""


def install() -> None:
    """Install migrator's Debian package on the machines that have another one than the working tree's."""
    mark = f"{machine_image.IN_MACHINE}/{machine_image.PACKAGE_MARK}"
    wanted = machine_image.package_identity()
    others = [host for host in LXC_HOSTS if inside(host, ["cat", mark]).strip() != wanted]
    command = ["sh", "-c", INSTALL, "sh", mark, wanted]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for done in [pool.submit(inside, host, command, file=deb.package(), timeout=BOOT_LIMIT) for host in others]:
            done.result()


def reset(host: str) -> None:
    """Reset a machine as its button would, and wait until it runs commands again."""
    with Qmp(qmp_path(Path(paths.RUN), host)) as control:
        control.execute("system_reset")
    wait_until_up(host)


def wait_until_up(host: str) -> None:
    """Wait until a machine has booted."""
    deadline = time.monotonic() + BOOT_LIMIT
    while True:
        try:
            inside(host, ["systemctl", "is-system-running", "--wait"], timeout=BOOT_LIMIT, check=False)
            inside(host, ["true"])
            return
        except CommandFailed:
            if time.monotonic() > deadline:
                raise RigError(f"{host} does not boot", hint=f"tail {paths.LIB}/{host}/console.log") from None
            time.sleep(0.5)
