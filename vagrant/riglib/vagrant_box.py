# SPDX-License-Identifier: GPL-2.0-or-later
"""A Vagrant box made on the spot: Debian 13 for libvirt, on a machine without hardware virtualization.

It is what the Vagrantfile's public box is, as far as that file and provision.sh are concerned: a Debian in which
Vagrant can log in, and nothing of ours. As machines made from it have no network but each other's, the packages and the
wheels that provision.sh installs lie in it, downloaded and not installed.

It has no boot loader: QEMU boots its kernel. That, and how to emulate a machine, is in the box's own Vagrantfile, which
Vagrant reads before ours.
"""

import json
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from riglib.guest_roots import DAY
from riglib.rootfs import CACHE, LEFT_OUT, PROVISION, STABLE, key, mmdebstrap, pip_certificates, requirements
from riglib.run import run, say
from riglib.state import lock

HAS = ("dbus", "initramfs-tools", "libpam-systemd", "linux-image-cloud-amd64", "openssh-server", "python3-venv",
       "rsync", "sudo", "systemd-sysv", "udev")
"""For Vagrant: login, sudo, rsync, a host name by D-Bus; and pip, to download the wheels with."""

DISK = 16 << 30
"""Bytes; sparse. provision.sh makes an 8 GiB file in it, sparse as well."""

DOWNLOADED, WHEELS = "/opt/debs", "/opt/wheels"

NETWORK = """[Match]
Name=eth0
[Network]
DHCP=ipv4
"""
"""Of eth0 alone: `en*` would match eth1 as well, by its alternative name, and take it away from Vagrant."""

SSH_SERVICE = """[Service]
ExecStartPre=
ExecStartPre=sh -c '[ -e /etc/ssh/ssh_host_ed25519_key ] || \
ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key'
ExecStartPre=/usr/sbin/sshd -t
"""
"""Each machine makes a host key of its own when it first boots."""

APT = f'Dir::Cache::Archives "{DOWNLOADED}"; Acquire::Retries "0"; APT::Keep-Downloaded-Packages "true";\n'
"""`apt-get update` reaches nobody, which is no error to it, and goes on with the lists that are there."""

PIP = f"[global]\nno-index = true\nfind-links = {WHEELS}\n"

VAGRANTFILE = """Vagrant.configure("2") do |config|
  config.ssh.private_key_path = File.expand_path("key", __dir__)
  config.vm.boot_timeout = 600
  config.vm.provider "libvirt" do |machine|
    machine.driver = "qemu"
    machine.machine_type = "q35"
    # QEMU 7.2's emulation of cmpxchg16b panics the guest now and then.
    machine.cpu_mode = "custom"
    machine.cpu_model = "EPYC"
    machine.cpu_feature name: "cx16", policy: "disable"
    machine.graphics_type = "none"
    machine.disk_driver cache: "unsafe"
    machine.kernel = File.expand_path("vmlinuz", __dir__)
    machine.initrd = File.expand_path("initrd.img", __dir__)
    machine.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet"
  end
end
"""


def ensure() -> Path:
    """Return the box, a file that `vagrant box add` takes; make it first if it is not cached."""
    listed = run(["sh", str(PROVISION), "list"]).split()
    wanted = ["setuptools", "wheel", *requirements()]
    steps = hooks(Path("key.pub"), listed, wanted)
    box = CACHE / f"vagrant-{key(STABLE, *HAS, *LEFT_OUT, *steps, VAGRANTFILE, str(DISK))}.box"
    if not box.exists():
        with lock(CACHE / ".lock", timeout=1200) as cache_lock:
            if not box.exists():
                make(box, listed, wanted, cache_lock)
    os.utime(box)
    return box


def make(box: Path, listed: list[str], wanted: list[str], cache_lock: int) -> None:
    """Make the box, and remove those that nobody has used for a day."""
    started = time.monotonic()
    say(f"building {box} (once; Debian {STABLE})")
    for killed in CACHE.glob(".building-vagrant-*"):
        shutil.rmtree(killed)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".building-vagrant-") as folder:
        root, parts = Path(folder, "root"), Path(folder, "parts")
        parts.mkdir()
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vagrant", "-f", str(parts / "key")])
        left_out = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        mmdebstrap("--format=directory", "--skip=cleanup/apt/lists", f"--include={','.join(HAS)}", *left_out,
                   *hooks(parts / "key.pub", listed, wanted), STABLE, str(root), locks=(cache_lock,))
        for name in ("vmlinuz", "initrd.img"):
            (parts / name).write_bytes((root / name).resolve().read_bytes())
        disk(root, parts / "box.img")
        (parts / "key.pub").unlink()
        (parts / "Vagrantfile").write_text(VAGRANTFILE, encoding="utf-8")
        told = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK >> 30}
        (parts / "metadata.json").write_text(json.dumps(told), encoding="utf-8")
        unfinished = Path(folder, "box")
        names = sorted(part.name for part in parts.iterdir())
        run(["tar", "-cf", str(unfinished), "-C", str(parts), *names], timeout=300)
        unfinished.rename(box)
    for other in CACHE.glob("vagrant-*.box"):
        if time.time() - other.stat().st_mtime > DAY and other != box:
            other.unlink()
    say(f"built {box} in {time.monotonic() - started:.0f} s, {box.stat().st_size >> 20} MiB")


def hooks(public_key: Path, listed: list[str], wanted: list[str]) -> list[str]:
    """Return what makes a box out of Debian, as options of mmdebstrap."""
    login = (
        # No password, but not locked either: an sshd without PAM lets nobody in who is.
        'chroot "$1" useradd -m -s /bin/bash -p "*" vagrant',
        'echo "vagrant ALL=(ALL) NOPASSWD: ALL" >"$1/etc/sudoers.d/vagrant"',
        f'install -D -m 644 {public_key} "$1/home/vagrant/.ssh/authorized_keys"',
        'chroot "$1" chown -R vagrant:vagrant /home/vagrant/.ssh',
        'rm -f "$1"/etc/ssh/ssh_host_*',
        written(SSH_SERVICE, "/etc/systemd/system/ssh.service.d/key.conf"),
    )
    system = (
        written(NETWORK, "/etc/systemd/network/eth0.network"),
        'chroot "$1" systemctl enable systemd-networkd',
        'echo "127.0.0.1 localhost" >"$1/etc/hosts"',
        'echo "/dev/vda / ext4 defaults 0 1" >"$1/etc/fstab"',
        ': >"$1/etc/machine-id"',
        # It takes minutes there, and the machine boots from the initrd that is beside the disk.
        'echo "update_initramfs=no" >"$1/etc/initramfs-tools/update-initramfs.conf"',
    )
    # AppArmor is on in Debian's kernel, and provision.sh installs its programs then.
    packages = " ".join([*listed, "apparmor"])
    downloads = (
        f'mkdir -p "$1{DOWNLOADED}/partial" "$1{WHEELS}"',
        f'chroot "$1" apt-get install -y -q --no-install-recommends --download-only '
        f"-o Dir::Cache::Archives={DOWNLOADED} {packages}",
        pip_certificates(),
        f'chroot "$1" sh -euc "python3 -m venv /opt/pip && env SSL_CERT_FILE=/tmp/ca.crt PIP_CERT=/tmp/ca.crt '
        f'/opt/pip/bin/pip download -q --only-binary :all: -d {WHEELS} {shlex.join(wanted)}"',
        written(APT, "/etc/apt/apt.conf.d/rig"),
        written(PIP, "/etc/pip.conf"),
        'rm -rf "$1"/tmp/* "$1/opt/pip"',
        # The machine's, which the downloads needed; the box's machines ask nobody.
        'rm -f "$1/etc/resolv.conf" && touch "$1/etc/resolv.conf"',
    )
    return [f"--customize-hook={step}" for step in (*login, *system, *downloads)]


def written(text: str, path: str) -> str:
    """Return the command that writes a file of the root."""
    return f'printf %s {shlex.quote(text)} | install -D -m 644 /dev/stdin "$1{path}"'


def disk(root: Path, image: Path) -> None:
    """Make a disk image, a file system without partitions, from a root file system."""
    raw = image.with_suffix(".raw")
    raw.touch()
    os.truncate(raw, DISK)
    run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,root_owner=0:0", "-d", str(root), str(raw)], timeout=600)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)], timeout=600)
    raw.unlink()
