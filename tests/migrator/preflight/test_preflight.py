# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts in, findings out: each code has facts that bring it up; the made-up hosts and container bring up none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.config.lxc_settings import IdMap, Include, MountEntry, Net
from migrator.criu.criu_dump import NFTABLES_LOCK
from migrator.host.mountinfo import Mount
from migrator.host.net_state import Interface, Neighbour
from migrator.preflight import survey as preflight
from migrator.preflight.checks import network_checks
from migrator.preflight.checks.case import Case, PlanOptions
from migrator.preflight.facts.apparmor_facts import AppArmor
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts, Other
from migrator.preflight.findings import (
    Finding,
    Severity,
    Verdict,
    codes,
    render,
    verdict,
)
from tests.effort import tries
from tests.migrator.made_up import (
    BRIDGE,
    CONTAINER,
    CPU,
    DESTINATION,
    ETH0,
    GIB,
    LO,
    NET,
    ROOT,
    SOURCE,
    anything,
    change,
    notes,
)

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
IDMAP = (IdMap("u", 0, 100_000, 65_536), IdMap("g", 0, 100_000, 65_536))
WEAKER = dataclasses.replace(CPU, capability=(*CPU.capability[:9], 0xFFFFFFFF & ~(1 << 5), *CPU.capability[10:]))
BIND = (MountEntry("/srv/data", "srv/data", "none", ("bind", "create=dir")),)
WARY = {"hooks_fix": "migrator peer allow here receive --accept-hooks"}  # takes nothing that reaches out
BOUND = (ROOT, Mount("/srv/data", "btrfs", "external", "/srv/data"))
OPTIONAL = (dataclasses.replace(BIND[0], options=("bind", "optional")),)
DISK = (MountEntry("/dev/vg0/webdata", "srv/data", "ext4", ("defaults", "create=dir")),)
ON_DISK = (ROOT, Mount("/srv/data", "ext4", "unsupported", disk="/dev/mapper/vg0-webdata"))


NFT = {"criu.features": (NFTABLES_LOCK,)}
COMMON = "/usr/share/lxc/config/common.conf"
INCLUDES = (Include("/etc/lxc/a", "/etc/lxc/a", "1"), Include("/etc/lxc/d/b.conf", "/etc/lxc/d/", "1"),
            Include(COMMON, COMMON, "1"))


@dataclasses.dataclass(frozen=True)
class Change:
    """What is different from the made-up facts; keys are fields, `a.b` for those of a record in a field."""

    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    destination: dict[str, Any] = dataclasses.field(default_factory=dict)
    container: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    alone: bool = False  # without a destination

    def find(self) -> list[Finding]:
        return preflight.find(
            change(SOURCE, self.source), None if self.alone else change(DESTINATION, self.destination),
            change(CONTAINER, self.container), change(PlanOptions(), self.options),
        )


def task(kind: str, detail: str = "worker", **more: Any) -> Change:
    """A process of the container was seen to have this."""
    return Change(container={"tasks.notes": notes((kind, detail), **more)})


def by_lxc_net(mac: str) -> Change:
    """Both hosts' bridges are as lxc-net makes them, with the hardware address that it gives every one."""
    interfaces = (LO, dataclasses.replace(BRIDGE, mac=mac))
    return Change(source={"interfaces": interfaces}, destination={"interfaces": interfaces})


CGNS = "lxc-container-default-cgns"
GENERATED = "lxc-c1_</pool>"
STACKED = f"{GENERATED}//&:lxc-c1_<-pool>:unconfined"


def confined(label: str, configured: str = "", *, loaded: tuple[str, ...] | None = (), **files: str) -> Change:
    """Its processes have this label; the destination has loaded these profiles, () for no AppArmor at all there."""
    return Change(container={"config.apparmor": configured, "apparmor": AppArmor(label, **files)},
                  destination={"apparmor": loaded != (), "apparmor_profiles": loaded})


def net(**fields: Any) -> tuple[Net, ...]:
    return (dataclasses.replace(NET, **fields),)


def allows(value: str, there: str = "") -> Change:
    """The container may use these devices; `there` is what the destination has under their path."""
    return Change(container={"config.cgroup": (("lxc.cgroup2.devices.allow", value),)},
                  destination={"present": {value.split()[0]: there} if there else {}})


# (code, severity, change, words of the message or the cure)
FOUND: list[tuple[str, Severity, Change, str]] = [
    # software
    ("criu-missing", ERROR, Change(source={"criu.version": ""}), "not installed on here"),
    ("criu-missing", ERROR, Change(destination={"criu.version": ""}), "not installed on there"),
    ("criu-too-old", ERROR, Change(source={"criu.version": "4.0", "kernel": "6.1"}), "CRIU 4.0"),
    ("criu-too-old", ERROR, Change(source={"criu.version": "3.17.1", "kernel": "6.1"}, alone=True), "4.1 or newer"),
    ("criu-too-old-for-kernel", ERROR, Change(source={"criu.version": "4.1.1"}), "SO_PASSCRED"),
    ("criu-too-old-for-kernel", ERROR, Change(source={"criu.version": "4.0", "kernel": "6.13-rc1"}), "vDSO"),
    ("criu-guard-pages", WARNING, Change(source={"criu.version": "4.1.1", "kernel": "6.13"}), "guard pages"),
    ("criu-check-failed", ERROR, Change(destination={
        "criu.check_ok": False, "criu.check_output": "Warn: x\nError (criu/cr-check.c:1): no\n"}), "cr-check.c:1"),
    ("criu-check-failed", ERROR, Change(destination={"criu.check_ok": False, "criu.check_output": ""}), "nothing"),
    ("criu-versions-differ", WARNING, Change(source={"criu.version": "4.3"}), "older CRIU"),
    ("criu-versions-differ", INFO, Change(destination={"criu.version": "4.3"}), "way back"),
    ("criu-config-file", WARNING, Change(source={"criu.config_files": ("/etc/criu/default.conf",)}), "default.conf"),
    ("criu-config-refused", ERROR, Change(destination={
        "criu.config_files": ("/etc/criu/default.conf",),
        "criu.config_faults": (("/etc/criu/default.conf", "unrecognized option '--log-level'"),)}), "'--log-level'."),
    ("cpu-differs", ERROR, Change(destination={"criu.cpu": WEAKER}), "avx2"),
    ("cpu-differs", ERROR, Change(destination={"criu.cpu": dataclasses.replace(CPU, xfeatures=7)}), "XSAVE state 0xe0"),
    ("cpu-unknown", WARNING, Change(destination={"criu.cpu": None}), "of there"),
    ("architecture-differs", ERROR, Change(destination={"arch": "aarch64"}), "aarch64"),
    ("page-size-differs", ERROR, Change(destination={"page_size": 65536}), "65536"),
    ("kernel-older", WARNING, Change(destination={"kernel": "6.12.57"}), "6.12.57"),
    ("lxc-missing", ERROR, Change(destination={"lxc": ""}), "apt-get install lxc"),
    ("lxc-versions-differ", WARNING, Change(destination={"lxc": "6.0.4"}), "6.0.4"),
    ("lxc-versions-differ", INFO, Change(destination={"lxc": "7.0.1"}), "7.0.1"),
    ("python-lxc-missing", ERROR, Change(source={"python_lxc": False}), "--system-site-packages"),
    ("program-missing", ERROR, Change(source={"programs": ("criu", "ip", "nsenter", "nft", "tar")}), "btrfs-progs"),
    ("program-missing", ERROR, Change(source={"programs": ("criu", "ip", "nsenter", "nft", "btrfs")}), "tar"),
    ("program-missing", ERROR, Change(destination={"programs": ("btrfs", "ip", "nsenter", "nft", "tar")}),
     "lxc-checkpoint"),
    ("firewall-tool-missing", ERROR, Change(source={"programs": ("nft",)}), "On here: apt-get install iptables"),
    ("firewall-tool-missing", ERROR, Change(source=NFT, destination={"programs": ("nft",)}), "CRIU on there cannot"),
    ("firewall-tool-missing", ERROR, Change(source={"programs": ()}, container={"tasks.notes": ()}),
     "CRIU on here, there cannot"),
    ("migrator-versions-differ", WARNING, Change(destination={"migrator": "0.2"}), "0.2"),
    ("cgroup-not-unified", ERROR, Change(source={"cgroups": "hybrid"}), "hybrid"),
    ("cgroup-not-unified", ERROR, Change(destination={"cgroups": ""}), "unknown"),
    ("cgroup-controller-missing", ERROR, Change(
        container={"config.cgroup": (("lxc.cgroup2.io.max", "1"),)}), "lxc.cgroup2.io"),
    ("cgroup-controller-in-use", ERROR, Change(container={"controllers": ("cpuset", "memory")}), "lacks: cpuset"),
    ("no-sys-resource", ERROR, Change(destination={"capabilities": 7}, container={"tasks.uids": (0, 33)}), "33"),
    ("no-time-namespaces", WARNING, Change(destination={"time_namespaces": False}), "-4910 seconds"),
    ("same-host", ERROR, Change(destination={"identity": "1" * 32}), "this host itself"),
    # place
    ("container-not-running", ERROR, Change(container={"state": "STOPPED", "init_pid": 0}, alone=True), "lxc-start"),
    ("container-frozen", WARNING, Change(container={"state": "FROZEN"}), "lxc-unfreeze"),
    ("ephemeral", WARNING, Change(container={"config.ephemeral": True}, alone=True), "= 0 in /pool/c1/config"),
    ("ephemeral", WARNING, Change(container={"ephemeral": True}, alone=True), "-r /pool/c1/rootfs /pool/c1.kept &&"),
    ("ephemeral", WARNING, Change(container={"ephemeral": True, "config.ephemeral": True}), "Do not stop it before"),
    ("name-taken", ERROR, Change(destination={"containers": (Other("c1"),)}), "/pool"),
    ("name-taken", ERROR, Change(destination={"containers": (Other("c2"),)}, options={"name": "c2"}), "c2"),
    ("lxcpath-missing", ERROR, Change(destination={"storage.exists": False}), "mkdir -p /pool"),
    ("destination-not-btrfs", ERROR, Change(destination={"storage.filesystem": "ext4"}), "ext4"),
    ("rootfs-not-subvolume", ERROR, Change(container={"rootfs.subvolume": False}, alone=True), "no subvolume"),
    ("rootfs-not-subvolume", ERROR, Change(container={"rootfs.subvolume": False, "rootfs.filesystem": "ext4"}),
     "on ext4"),
    ("disk-quota", WARNING, Change(container={"rootfs.quota": (("0/256", 10 << 20, -1),)}),
     "10.0 MiB (qgroup 0/256); its copy"),
    ("disk-quota", WARNING, Change(container={"rootfs.quota": (("0/256", -1, 0), ("1/7", GIB, -1))}, alone=True),
     "0 B that only it uses (qgroup 0/256), 1.0 GiB (qgroup 1/7)"),
    ("rootfs-not-subvolume", ERROR, Change(container={"rootfs.subvolume": False, "config.backend": "overlayfs",
                                                      "rootfs.path": "/a:/b"}), "is an overlay of /a:/b"),
    ("nested-subvolume", ERROR, Change(container={
        "rootfs.nested": ("var/lib/machines",), "fixed": ("/var/lib/machines",)}),
     "find /var/lib/machines.subvolume/machines -xdev -delete"),
    ("nested-subvolume", ERROR, Change(container={"rootfs.nested": ("home/u/s",), "owned": ("/home/u/s",)}),
     "cp -aT /home/u/s.subvolume /home/u/s' USER -- and once"),
    ("nested-subvolume", ERROR, Change(container={"rootfs.nested": ("home/u/s",)}), "delete it, not root"),
    ("nested-unknown", ERROR, Change(container={"rootfs.nested_unknown": "EIO."}), "EIO"),
    ("disk-full", ERROR, Change(destination={"storage.free": GIB // 2}), "512.0 MiB free"),
    ("disk-full", ERROR, Change(options={"disk_needed": 60 * GIB}), "60.0 GiB"),
    ("disk-tight", WARNING, Change(destination={"storage.free": GIB + 1}), "only 1 B"),
    ("disk-size-unknown", INFO, Change(container={"rootfs.used": -1}), "du -shx"),
    ("memory-short", ERROR, Change(destination={"memory_available": GIB // 4}), "uses 256.0 MiB"),
    ("memory-tight", WARNING, Change(destination={"memory_available": GIB // 2}), "images"),
    ("wireguard-slow", WARNING, Change(options={"tunnel": ("wireguard-go 0.0.20220316 is old.",)}), "is old"),
    ("clock-difference", WARNING, Change(destination={"time": SOURCE.time - 90}), "90.0 seconds behind"),
    ("clock-difference", WARNING, Change(options={"clock_offset": 2.5}), "2.5 seconds ahead of"),
    # network
    ("network-type", ERROR, Change(container={"config.nets": net(type="ipvlan")}, alone=True), "ipvlan"),
    ("host-network", ERROR, Change(container={"config.nets": net(type="none")}), "lxc.net.0.type = none"),
    ("network-not-bridged", WARNING, Change(container={"config.nets": net(type="macvlan")}), "macvlan on lxcbr0"),
    ("shared-namespace", ERROR, Change(container={"config.shared_namespaces": ("share.net c0",)}), "share.net c0"),
    ("bridge-missing", ERROR, Change(destination={"interfaces": (LO, Interface("br7", "bridge"))}),
     "--map-bridge lxcbr0=br7"),
    ("bridge-missing", ERROR, Change(options={"bridges": {"lxcbr0": "br9"}}), "no bridge br9 (it has lxcbr0)"),
    ("bridge-missing", ERROR, Change(destination={"interfaces": (LO,)}), "and no other"),
    ("not-a-bridge", ERROR, Change(destination={"interfaces": (LO, Interface("lxcbr0", "dummy"))}), "dummy"),
    ("not-a-bridge", ERROR, Change(destination={"interfaces": (LO, Interface("lxcbr0", "openvswitch"))}), "vswitch"),
    ("link-missing", ERROR, Change(container={"config.nets": net(type="phys", link="enp3s0")}), "enp3s0"),
    ("mtu-smaller", WARNING, Change(destination={"interfaces": (dataclasses.replace(BRIDGE, mtu=1400),)}), "mtu 1500"),
    ("foreign-subnet", WARNING, Change(destination={
        "interfaces": (dataclasses.replace(BRIDGE, addresses=("192.168.1.1/24",)),)}), "10.0.3.50 is in none"),
    ("bridge-not-shared", WARNING, Change(destination={"interfaces": (dataclasses.replace(BRIDGE, mac="aa:2"),)}),
     "both have the address 10.0.3.1"),
    ("bridge-not-shared", WARNING, by_lxc_net("10:66:6a:00:00:00"), "both have the address 10.0.3.1"),
    ("bridge-not-shared", WARNING, by_lxc_net("00:16:3e:00:00:00"), "both have the address 10.0.3.1"),
    ("bridge-not-shared", WARNING, Change(options={"answers": {"10.0.3.2%lxcbr0": ""}}), "which there has on lxcbr0"),
    ("bridge-not-shared", WARNING, Change(options={"answers": {"10.0.3.2%lxcbr0": "aa:00:00:00:00:09"}}),
     "aa:00:00:00:00:09, not aa:00:00:00:00:02, answers"),
    ("bridge-not-shared", WARNING, Change(options={"bridges": {"lxcbr0": "br1"}}, destination={
        "interfaces": (LO, Interface("br1", "bridge", "aa:2", ("10.0.3.1/24",), mtu=1500))}), "and br1 on there"),
    ("address-taken", ERROR, Change(destination={"interfaces": (
        BRIDGE, Interface("eth1", "", "", ("10.0.3.50/16",)))}), "there itself, on eth1"),
    ("address-taken", ERROR, Change(destination={"containers": (Other("c9", True, ("10.0.3.50/24",)),)}), "c9"),
    ("address-taken", WARNING, Change(destination={"containers": (Other("c9", False, ("10.0.3.50",)),)}), "stopped"),
    ("address-taken", ERROR, Change(destination={"neighbours": (
        Neighbour("10.0.3.50", "52:54:00:00:00:01", "lxcbr0"),)}), "52:54:00:00:00:01"),
    ("address-taken", WARNING, Change(destination={"neighbours": (
        Neighbour("10.0.3.50", "52:54:00:00:00:01", "lxcbr0", False),)}), "some time ago"),
    ("mac-taken", ERROR, Change(destination={"containers": (Other("c9", True, (), (ETH0.mac,)),)}), "c9"),
    ("mac-taken", WARNING, Change(destination={"containers": (Other("c9", False, (), (ETH0.mac,)),)}), "stopped"),
    ("mac-taken", ERROR, Change(destination={"interfaces": (BRIDGE, Interface("tap0", "tun", ETH0.mac))}), "tap0"),
    ("veth-pair-taken", ERROR, Change(container={"config.nets": net(pair="lo")}), "interface lo"),
    ("interface-kind", ERROR, Change(container={"interfaces": (LO, ETH0, Interface("d0", "dummy"))}), "kind dummy"),
    ("address-not-configured", INFO, Change(container={"config.nets": net(addresses=())}), "10.0.3.50 on eth0"),
    ("multicast-groups", WARNING, Change(container={"unsaved.groups": ("239.1.2.3 on eth0",)}, alone=True),
     "listens to 239.1.2.3 on eth0, and"),
    ("routing-not-saved", WARNING, Change(container={"unsaved.tables": ("100",), "unsaved.rules": ("5 (table 7)",),
                                                     "unsaved.queues": ("tbf of eth0",)}, alone=True),
     "the routes of the table 100, the IPv6 rule 5 (table 7), the qdisc tbf of eth0 after"),
    ("kernel-encryption", ERROR, Change(container={"encrypted": ("TLS of 2 connections", "IPsec")}, alone=True),
     "TLS of 2 connections, IPsec of"),
    ("kernel-encryption", ERROR, Change(container={"networks": 65}, alone=True), "65 network namespaces, more than"),
    ("rootfs-replaced", ERROR, Change(container={"rootfs.replaced": True}, alone=True), "/proc/4711/mountinfo"),
    # tasks
    ("attached-task", ERROR, task("attached"), "kill 4712"),
    ("cgroup-frozen", ERROR, Change(container={"frozen": ("/sys/fs/cgroup/lxc.payload.c1/x", "/y")}, alone=True),
     "echo 0 >/sys/fs/cgroup/lxc.payload.c1/x/cgroup.freeze"),
    ("cgroup-frozen", ERROR, Change(container={"frozen": (f"/sys{'/x' * 4000}",)}, alone=True), "/x/x... is frozen"),
    ("session-outside", ERROR, task("session-outside"), "setsid"),
    ("session-outside", ERROR, task("zombie-session-outside"), "zombie worker"),
    ("zombie-session", ERROR, task("zombie-session"), "tini"),
    ("outside-cgroup", ERROR, task("outside-cgroup"), "not be frozen"),
    ("traced-task", ERROR, task("traced", "worker by process 1"), "by process 1"),
    ("uninterruptible-task", WARNING, task("uninterruptible"), "/proc/4712/stack"),
    ("root-not-mount-root", ERROR, Change(container={"init_root": "/srv/chroot"}), "/srv/chroot"),
    ("facts-incomplete", WARNING, Change(container={"tasks.complete": False}), "more processes"),
    ("outside-file", ERROR, task("outside-file", "/root/notes"), "/root/notes"),
    ("file-unknown", WARNING, task("file-unknown", "/mnt/notes"), "/mnt/notes"),
    ("terminal-outside", ERROR, task("terminal-outside", "/dev/pts/3"), "end it: kill 4712"),
    ("pipe-outside", WARNING, task("pipe-outside", "pipe:[1] to cat (process 9)"), "to cat (process 9)"),
    ("unix-socket-outside", ERROR, task("unix-outside", "socket:[7]"), "nsenter -t 4711"),
    ("deleted-file-large", ERROR, task("deleted-file", "/tmp/big", size=300 << 20), "300.0 MiB"),
    ("deleted-file-astray", ERROR, task("deleted-astray", "/a/b: /a is now a symbolic link"), "/a/b: /a is now a"),
    ("mount-deleted", ERROR, Change(container={"mounts": (ROOT, Mount("/m n", "btrfs", "deleted")),
                                                      "fixed": ("/m n",)}), "umount '/m n'"),
    ("mount-deleted", ERROR, Change(container={"mounts": (ROOT, Mount("/m", "btrfs", "deleted"))}), "Unmount it as"),
    ("nested-namespace", ERROR, task("nested-namespace", "uts"), "ProtectHostname=no"),
    ("nested-mount-namespace", INFO, task("nested-namespace", "mnt"), "mnt namespace"),
    ("namespace-file", ERROR, task("namespace-file", "net:[4026531840]"), "net:[4026531840]"),
    ("bpf-descriptor", ERROR, task("anon-inode", "bpf-prog"), "seccomp"),
    ("bpf-map", ERROR, task("anon-inode", "bpf-map"), "libbpf"),
    ("descriptor-kind", ERROR, task("anon-inode", "io_uring"), "io_uring"),
    ("socket-kind", ERROR, task("socket", "AF_VSOCK"), "AF_VSOCK"),
    ("socket-kind", ERROR, task("socket", "MPTCPv6"), "GODEBUG"),
    ("socket-unknown", WARNING, task("socket", ""), "unknown protocol"),
    ("device-open", ERROR, task("device", "char 10:229 /dev/fuse"), "/dev/fuse"),
    ("device-open", ERROR, task("device", "block 7:0 /dev/loop0"), "/dev/loop0"),
    ("socket-astray", ERROR, task("socket-astray", "/h/s leads through /proc"), "rebound: /h/s leads through"),
    ("inotify-symlink", ERROR, Change(container={
        "tasks.notes": notes(("watch-symlink", "/etc/localtime")), "fixed": ("/etc/localtime",)}), "cp -p --remove"),
    ("inotify-symlink", ERROR, task("watch-symlink", "/etc/localtime"), "or end it: kill 4712"),
    ("inotify-deleted", ERROR, task("watch-deleted", "/tmp/x"), "has been deleted"),
    ("inotify-deleted", ERROR, task("watch-hidden", "/tmp/x"), "hidden"),
    ("inotify-unknown", WARNING, task("watch-unknown", "inode 5 of device 0:9"), "inode 5"),
    ("systemd-guest", WARNING, Change(container={"init_name": "systemd"}), "systemd"),
    # mounts
    ("mount-unsupported", ERROR, Change(container={"mounts": (ROOT, Mount("/m", "nfs4", "unsupported"))}), "nfs4"),
    ("mount-unsupported", ERROR, task("nested-mount", "overlay /var/lib/a b"),
     "/var/lib/a b is a file system of type overlay"),
    ("mount-unreachable", ERROR, Change(container={"mounts": (ROOT, Mount("/m", "ext4", "unreachable"))}), "/m"),
    ("mount-source-missing", ERROR, Change(container={"mounts": BOUND}), "no /srv/data"),
    *(("mount-source-missing", ERROR, Change(container={"config.mounts": (MountEntry(path, "srv/data", "ext4"),)}),
       f"no {path}") for path in ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
                                  "/dev/disk/by-path/ip-192.0.2.9:3260-iscsi-iqn.2026-01.nas:web-lun-0")),
    ("disk-stays-behind", ERROR, Change(container={"config.mounts": DISK, "mounts": ON_DISK}),
     "/dev/vg0/webdata of here, which c1 mounts at /srv/data,"),
    ("disk-stays-behind", ERROR, Change(container={"mounts": ON_DISK}, alone=True),
     "/dev/mapper/vg0-webdata of here, mounted in c1 at /srv/data,"),
    ("disk-stays-behind", ERROR, Change(container={"mounts": ON_DISK, "fixed": ("/srv/data",)}),
     "umount /srv/data -- or"),
    ("disk-stays-behind", ERROR, Change(container={"mounts": ON_DISK}), "file system, and unmount it as the user who"),
    ("disk-stays-behind", ERROR, Change(container={"config.mounts": DISK}, destination={
        "present": {"/dev/vg0/webdata": "device"}}), "--ignore disk-stays-behind"),
    ("disk-stays-behind", ERROR, Change(container={"config.mounts": (
        MountEntry("tank/web", "srv/data", "zfs", ("optional",)),)}), "tank/web of here"),
    *(("disk-stays-behind", WARNING, Change(container={"mounts": (
        ROOT, Mount("/snap/a", type_, "unsupported", disk="-D", loop="7:3"))}),
       "backs 7:3: losetup --list --output MAJ:MIN,BACK-FILE -- and") for type_ in ("squashfs", "erofs", "iso9660")),
    ("disk-stays-behind", ERROR, Change(options={"memory": False}, container={"mounts": (
        ROOT, Mount("/srv/data", "ext4", "unsupported", read_only=True, disk="-D", loop="7:3"))}),
     "too late for the last snapshot"),
    ("bind-mount", WARNING, Change(container={"mounts": BOUND}, destination={"present": {"/srv/data": "folder"}}),
     "does not move along"),
    ("bind-mount", WARNING, Change(container={
        "mounts": (ROOT, Mount("/srv/data", "btrfs", "external")), "config.mounts": OPTIONAL}),
     "is /srv/data of the host"),
    ("terminal-mounted", ERROR, Change(container={"mounts": (
        ROOT, Mount("/srv/line", "devpts", "external", "/dev/pts/4")), "fixed": ("/srv/line",)}, alone=True),
     "umount /srv/line"),
    # settings
    ("apparmor-missing", ERROR, confined(CGNS), "no AppArmor"),
    ("apparmor-generated", ERROR, confined(STACKED, "generated", loaded=(CGNS,), text="/pool/c1/apparmor/a <b>"),
     "on here: ssh root@there apparmor_parser -r < '/pool/c1/apparmor/a <b>'"),
    ("apparmor-generated", ERROR, confined(STACKED, "generated", loaded=(CGNS,), binary="/sys/x/raw_data"),
     "dd if=/sys/x/raw_data bs=64M iflag=fullblock | ssh root@there dd of=/sys/kernel/security/apparmor/.replace"),
    ("apparmor-generated", ERROR, confined(GENERATED, "", loaded=(CGNS,)), "unconfined: then AppArmor no longer"),
    ("apparmor-profile-missing", ERROR, confined(CGNS, loaded=("a",)), "/etc/apparmor.d/lxc-containers"),
    ("apparmor-profile-missing", ERROR, confined("old", "mine", loaded=("mine",)), "The AppArmor profile old"),
    ("apparmor-profile-missing", WARNING, confined("old", "mine", loaded=("old",)), "apparmor_parser -r FILE"),
    ("apparmor-parser-missing", ERROR, Change(container={"config.apparmor": "generated"}, destination={
        "apparmor": True, "programs": ("lxc-start",)}), "apt-get install apparmor"),
    ("cgroup-place", ERROR, Change(container={"config.cgroup_place": "lxc/101"}), "is lxc/101"),
    ("selinux-differs", ERROR, Change(source={"selinux": "enforcing"}, container={"config.selinux": "u:r:t"}), "u:r:t"),
    ("selinux-differs", WARNING, Change(destination={"selinux": "permissive"}), "on there and disabled on here"),
    ("seccomp-notify", WARNING, Change(container={"config.seccomp_notify": "unix:/run/x"}), "unix:/run/x"),
    ("seccomp-profile-missing", WARNING, Change(container={"config.seccomp": "/etc/s"}), "/etc/s"),
    ("fstab-missing", WARNING, Change(container={"config.mount_file": "/etc/f"}), "no /etc/f"),
    ("hooks", INFO, Change(container={"config.hooks": (("lxc.hook.start", "true"),)}), "lxc.hook.start"),
    ("hook-missing", WARNING, Change(container={"config.hooks": (("lxc.hook.start", "/bin/x -y"),)}), "no /bin/x"),
    ("net-script-missing", ERROR, Change(container={"config.nets": net(script="/bin/up x")}), "no /bin/up"),
    ("device-missing", ERROR, allows("/dev/kvm rw"), "there has no device /dev/kvm"),
    ("device-missing", ERROR, allows("/dev/kvm rwm", "file"), "Create it there"),
    ("device-rule", ERROR, allows("/dev/kvm x", "device"), "/dev/kvm x of c1 is not a valid device rule"),
    ("device-rule", ERROR, allows("b 8: r"), "in /pool/c1/config"),
    ("veth-router", ERROR, Change(container={"config.nets": net(mode="router")}), "--no-memory"),
    ("veth-not-made", ERROR, Change(container={"config.idmaps": IDMAP, "config.nets": net(name="_br0")}), "'_br0'"),
    ("veth-not-made", ERROR, Change(container={"config.idmaps": IDMAP}, destination={"kernel": "5.10.0-32-amd64"}),
     "Linux 5.13"),
    ("network-not-silenced", ERROR, Change(source={"kernel": "5.10.0-32-amd64"}, alone=True), "--no-memory"),
    ("bridge-without-vlans", ERROR, Change(container={"config.nets": net(vlan="7")}), "vlan_filtering 1"),
    ("bridge-without-vlans", ERROR, Change(container={"config.nets": net(tagged=("7",))}), "vlan_filtering 1"),
    ("include-unreadable", ERROR, Change(container={"config.faults": (("/etc/gone", "cannot be read: no"),)}),
     "/etc/gone cannot be read: no."),
    ("include-differs", WARNING, Change(container={"config.includes": INCLUDES[:1]}, destination={
        "digests": {"/etc/lxc/a": "2"}}), "/etc/lxc/a, included by"),
    ("include-differs", WARNING, Change(container={"config.includes": INCLUDES[1:2]}, destination={
        "present": {"/etc/lxc/d/": "folder"}}), "/etc/lxc/d/b.conf"),
    ("include-differs", INFO, Change(container={"config.includes": INCLUDES[2:]}, destination={
        "digests": {INCLUDES[2].path: "2"}}), "common.conf"),
    ("user-namespaces-off", ERROR, Change(
        container={"config.idmaps": IDMAP}, destination={"user_namespaces": 0}), "max_user_namespaces"),
    ("ids-not-mapped", ERROR, Change(container={"config.idmaps": IDMAP}, destination={
        "uid_map": (IdMap("u", 0, 500_000, 65_536), IdMap("g", 0, 500_000, 65_536))}), "u 0 100000 65536"),
    ("consent-needed", ERROR, Change(container={"reaches": ("lxc.hook.start-host = /x",)}, destination=WARY),
     "lxc.hook.start-host = /x"),
    ("consent-needed", ERROR, Change(container={"included": ("/usr/share/lxc/x.conf",)}, destination=WARY), "x.conf"),
    ("consent-needed", ERROR, Change(container={"reaches": ("a = b",)}, destination=WARY), "peer allow here receive"),
    ("mount-source-missing", ERROR, Change(container={"mounts": (
        ROOT, Mount("/dev/fuse", "devtmpfs", "external", "/dev/fuse"))}, destination=WARY), "/dev/fuse"),
    ("subids-missing", WARNING, Change(container={"config.idmaps": IDMAP}, destination={
        "subids": (IdMap("u", 0, 100_000, 65_536), IdMap("g", 0, 100_000, 10))}), "/etc/subgid"),
]

# With --no-memory: what is no hindrance to a start (None), and what is a greater or a lesser one than to a restore.
STARTED: list[tuple[str, Severity | None, Change]] = [
    ("program-missing", None, Change(destination={"programs": ("btrfs", "ip", "nsenter", "lxc-start", "lxc-stop")})),
    ("program-missing", ERROR, Change(destination={"programs": ("btrfs", "ip", "nsenter", "lxc-stop")})),
    ("program-missing", ERROR, Change(source={"programs": ("btrfs", "ip", "nsenter", "lxc-start")})),
    ("ephemeral", ERROR, Change(container={"config.ephemeral": True})),
    ("ephemeral", ERROR, Change(container={"ephemeral": True})),
    ("memory-short", WARNING, Change(destination={"memory_available": GIB // 4})),
    ("host-network", WARNING, Change(container={"config.nets": net(type="none")})),
    ("link-missing", ERROR, Change(container={"config.nets": net(type="ipvlan", link="enp3s0")})),
    ("apparmor-missing", WARNING, confined(CGNS)),
    ("apparmor-profile-missing", ERROR, confined("", "mine", loaded=("a",))),
    ("apparmor-profile-missing", None, confined("mine", "generated", loaded=("a",))),
    ("seccomp-profile-missing", ERROR, Change(container={"config.seccomp": "/etc/s"})),
    ("fstab-missing", ERROR, Change(container={"config.mount_file": "/etc/f"})),
    ("hook-missing", ERROR, Change(container={"config.hooks": (("lxc.hook.pre-start", "/bin/x -y"),)})),
    ("hook-missing", WARNING, Change(container={"config.hooks": (("lxc.hook.post-stop", "/bin/x -y"),)})),
    ("include-unreadable", ERROR, Change(container={"config.faults": (("/etc/gone", "cannot be read: no"),)})),
    ("subids-missing", ERROR, Change(container={"config.idmaps": IDMAP})),
    ("cgroup-controller-missing", ERROR, Change(container={"config.cgroup": (("lxc.cgroup2.io.max", "1"),)})),
    ("mount-source-missing", None, Change(container={"mounts": BOUND})),
    ("mount-source-missing", ERROR, Change(container={"mounts": BOUND, "config.mounts": BIND})),
    ("mount-source-missing", ERROR, Change(container={"config.mounts": DISK})),
    ("mount-source-missing", WARNING, Change(container={"mounts": BOUND, "config.mounts": OPTIONAL})),
    ("disk-stays-behind", ERROR, Change(container={"config.mounts": DISK, "mounts": ON_DISK})),
    ("disk-stays-behind", ERROR, Change(container={"mounts": ON_DISK})),
]

# What is close to a finding and is none.
NOT_FOUND: list[tuple[str, Change]] = [
    ("consent-needed", Change(container={"reaches": ("lxc.hook.start-host = /x",)})),
    ("consent-needed", Change(container={"reaches": ("lxc.hook.start-host = /x",)}, alone=True)),
    ("consent-needed", Change(container={"included": ("/usr/share/lxc/x.conf",)}, destination={
        **WARY, "present": {"/usr/share/lxc/x.conf": "file"}})),
    # Nothing is known of what was not answered; that such a thing is there at all has its own finding.
    ("mount-source-missing", Change(container={"mounts": BOUND, "config.mounts": BIND}, destination=WARY)),
    ("hook-missing", Change(container={"config.hooks": (("lxc.hook.post-stop", "/bin/x -y"),)}, destination=WARY)),
    ("hooks", Change(container={"config.hooks": (("lxc.hook.clone", "true"), ("lxc.hook.post-stop", "true"))})),
    ("seccomp-profile-missing", Change(container={"config.seccomp": "/srv/s"}, destination=WARY)),
    ("fstab-missing", Change(container={"config.mount_file": "/srv/f"}, destination=WARY)),
    ("veth-not-made", Change(container={"config.nets": net(name="_br0")}, destination={"kernel": "5.10.0"})),
    ("veth-not-made", Change(container={"config.idmaps": IDMAP, "config.nets": net(pair="_br0")})),
    ("veth-not-made", Change(container={"config.idmaps": IDMAP, "config.nets": net(type="empty", name="_br0")})),
    ("network-not-silenced", Change(source={"kernel": "5.10.0"}, container={"config.nets": net(type="empty")})),
    ("network-not-silenced", Change(source={"kernel": "5.16.1"}, alone=True)),
    ("device-missing", allows("/dev/kvm rw", "device")),
    ("device-missing", allows("/dev/serial/by-id/x rw", "symlink")),
    ("device-missing", allows("c 10:232 rw")),
    ("device-missing", dataclasses.replace(allows("/srv/kvm rw"), destination=WARY)),
    ("device-missing", dataclasses.replace(allows("/dev/kvm rw"), alone=True)),
    ("device-rule", allows("a")),
    ("criu-too-old", Change(destination={"criu.version": "4.0", "kernel": "6.1"})),
    ("criu-too-old-for-kernel", Change(source={"criu.version": "4.1", "kernel": "6.15.9"})),
    ("criu-too-old-for-kernel", Change(source={"criu.version": "4.1"}, container={"tasks.notes": ()})),
    ("criu-config-file", Change(source={"criu.config_files": ("/a",), "criu.config_faults": (("/a", "no"),)})),
    ("cpu-differs", Change(source={"criu.cpu": WEAKER})),
    ("cpu-differs", Change(destination={"arch": "aarch64", "criu.cpu": WEAKER})),
    ("kernel-older", Change(destination={"kernel": "6.18.1"})),
    ("kernel-older", Change(destination={"kernel": "custom"})),
    ("program-missing", Change(container={"mounts": (ROOT,)}, source={"programs": ("btrfs", "ip", "nsenter")})),
    ("firewall-tool-missing", Change(source={"programs": ("iptables-restore",)})),
    ("firewall-tool-missing", Change(source={**NFT, "programs": ()}, destination={**NFT, "programs": ()})),
    ("firewall-tool-missing", Change(source={**NFT, "programs": ()}, alone=True)),
    ("firewall-tool-missing", Change(source={"programs": ()}, container={"config.nets": net(type="none")})),
    ("firewall-tool-missing", Change(source={"programs": (), "criu.version": ""}, alone=True)),
    ("hooks", Change(container={"config.hooks": (("lxc.hook.post-stop", "true"), ("lxc.hook.stop", "true"))})),
    ("net-script-missing", Change(container={"config.nets": net(script="/bin/up")},
                                  destination={"present": {"/bin/up": "file"}})),
    ("bridge-without-vlans", Change(container={"config.nets": net(vlan="7")}, destination={
        "interfaces": (dataclasses.replace(BRIDGE, vlans=True),)})),
    ("cgroup-controller-in-use", Change(container={"controllers": ("memory", "pids")})),
    ("cgroup-controller-missing", Change(container={"config.cgroup": (
        ("lxc.cgroup2.memory.max", "1G"), ("lxc.cgroup2.devices.allow", "a"))})),
    ("no-sys-resource", Change(source={"capabilities": 1}, container={"tasks.uids": (0,)})),
    ("no-sys-resource", Change(source={"capabilities": 1},
                               container={"tasks.uids": (100_000, 100_033), "config.idmaps": IDMAP})),
    ("name-taken", Change(destination={"containers": (Other("c1"),)}, options={"known_copy": True})),
    ("disk-full", Change(destination={"storage.free": GIB // 2}, options={"disk_needed": 1000})),
    ("disk-full", Change(destination={"storage.free": 1}, options={"disk_needed": 0})),  # it is counted there
    ("clock-difference", Change(destination={"time": SOURCE.time - 90}, options={"clock_offset": 0.02})),
    ("bridge-missing", Change(destination={"interfaces": (LO, Interface("br7", "bridge"))},
                              options={"bridges": {"lxcbr0": "br7"}})),
    ("address-taken", Change(destination={"neighbours": (Neighbour("10.0.3.50", ETH0.mac.upper(), "lxcbr0"),)})),
    ("address-taken", Change(destination={"containers": (Other("c1", False, ("10.0.3.50",), (ETH0.mac,)),)})),
    ("mac-taken", Change(destination={"containers": (Other("c1", False, (), (ETH0.mac,)),)})),
    ("foreign-subnet", Change(destination={"interfaces": (dataclasses.replace(BRIDGE, addresses=()),)})),
    ("interface-kind", Change(container={"interfaces": (LO, ETH0, Interface("sit0", "sit"), Interface("t", "tun"))})),
    ("device-open", task("device", "char 5:1 /dev/console")),
    *(("terminal-mounted", Change(container={"mounts": (ROOT, Mount(target, "devpts", "external", "/dev/pts/4"))}))
      for target in ("/dev/console", "/dev/tty1", "/dev/lxc/console", "/dev/lxc/tty12")),
    ("mount-source-missing", Change(container={"config.mounts": BIND},
                                    destination={"present": {"/srv/data": "symlink"}})),
    ("device-open", task("device", "char 10:200 /dev/net/tun")),
    ("deleted-file-large", task("deleted-file", "/tmp/big", size=256 << 20)),
    ("bpf-map", Change(container={"tasks.notes": notes(("anon-inode", "bpf-map"))},
                       source={"criu.features": ("bpf_maps",)}, destination={"criu.features": ("bpf_maps",)})),
    ("mount-source-missing", Change(container={"mounts": BOUND}, destination={"present": {"/srv/data": "folder"}})),
    ("mount-source-missing", Change(container={"config.mounts": (
        MountEntry("/x", "x", "none", ("bind", "optional")), MountEntry("tmpfs", "y", "tmpfs"))})),
    ("mount-source-missing", Change(options={"memory": False}, container={"config.mounts": (
        MountEntry("/sys/firmware", "sys/firmware", "none", ("bind", "optional")),
        MountEntry("/x", "x", "none", ("bind", "optional")), MountEntry("//nas/x", "y", "cifs")),
        "mounts": (ROOT, Mount("/sys/firmware", "efivarfs", "external", "/sys/firmware"))})),
    ("disk-stays-behind", Change(container={"config.mounts": (
        MountEntry("/proc", "proc", "proc"), MountEntry("//nas/x", "y", "cifs"), MountEntry("nas:/x", "z", "nfs"),
        MountEntry("/dev/fuse", "f", "fuse"), MountEntry("/", "/", "none", ("rslave",)), *BIND)})),
    ("disk-stays-behind", Change(container={"mounts": (ROOT, Mount("/m", "nfs4", "unsupported"), *BOUND[1:])})),
    ("disk-stays-behind", Change(container={"config.mounts": (
        MountEntry("/sys/fs/selinux", "sys/fs/selinux", "selinuxfs", ("optional",)),)})),
    ("mount-source-missing", Change(options={"memory": False}, container={"config.mounts": (
        MountEntry("tank/web", "a", "zfs"), MountEntry("/a:/b", "b", "fuse.mergerfs"),
        MountEntry("/dev/sda:/dev/sdb", "c", "bcachefs"))})),  # no paths
    ("bind-mount", Change(container={"mounts": (ROOT, Mount("/dev/null", "devtmpfs", "external", "/dev/null"))})),
    # Without AppArmor on either side nothing is confined, whatever the configuration says.
    ("apparmor-missing", Change(container={"config.apparmor": "generated"})),
    ("apparmor-missing", Change(container={"config.apparmor": "mine"})),
    ("apparmor-missing", dataclasses.replace(confined(CGNS), alone=True)),
    ("apparmor-generated", confined(STACKED, "generated", loaded=(GENERATED,))),
    ("apparmor-generated", confined(STACKED, "generated", loaded=None)),
    ("apparmor-generated", confined("", "generated", loaded=(CGNS,))),  # its host had no AppArmor
    ("apparmor-profile-missing", confined("mine", "mine", loaded=("mine",))),
    ("apparmor-profile-missing", confined("mine", "mine", loaded=None)),
    ("apparmor-profile-missing", confined("", "unconfined", loaded=())),
    ("apparmor-profile-missing", confined(STACKED, "generated", loaded=(GENERATED,))),
    ("subids-missing", Change(container={"config.idmaps": IDMAP[:1]}, destination={
        "subids": (IdMap("u", 0, 90_000, 20_000), IdMap("u", 0, 110_000, 100_000))})),
    ("subids-missing", Change(container={"config.idmaps": IDMAP}, destination={"programs": ()})),
    ("ids-not-mapped", Change(container={"config.idmaps": IDMAP[:1]}, destination={
        "uid_map": (IdMap("u", 0, 500_000, 200_000),)})),
    ("root-not-mount-root", Change(container={"init_root": "/x", "init_pid": 0})),
    ("bridge-not-shared", Change(options={"answers": {"10.0.3.2%lxcbr0": "aa:00:00:00:00:02"}})),
    ("bridge-not-shared", Change(destination={"interfaces": (LO, BRIDGE)})),  # a gateway that is meant to be everywhere
    ("bridge-not-shared", Change(destination={"interfaces": (dataclasses.replace(BRIDGE, mac="aa:2"),)},
                                 container={"config.nets": net(type="macvlan")})),
    ("bridge-not-shared", Change(destination={"interfaces": (dataclasses.replace(BRIDGE, mac="aa:2"),)}, alone=True)),
    ("include-differs", Change(container={"config.includes": INCLUDES}, destination={
        "digests": {include.path: include.digest for include in INCLUDES}})),
    ("include-differs", Change(container={"config.includes": INCLUDES})),  # copies of what is not there travel
    ("include-differs", Change(container={"config.includes": (Include("/pool/c1/own", "/pool/c1/own", "1"),)},
                               destination={"digests": {"/pool/c1/own": "2"}})),
]


def test_good_facts_have_no_findings() -> None:
    assert preflight.find(SOURCE, DESTINATION, CONTAINER, PlanOptions()) == []
    assert preflight.find(SOURCE, None, CONTAINER) == []
    assert verdict([]) is Verdict.READY


@pytest.mark.parametrize(("code", "severity", "changed", "words"), FOUND, ids=[case[0] for case in FOUND])
def test_found(code: str, severity: Severity, changed: Change, words: str) -> None:
    found = [finding for finding in changed.find() if finding.code == code]
    assert found, f"only {[finding.code for finding in changed.find()]}"
    assert {finding.severity for finding in found} == {severity}
    assert any(words in f"{finding.message} {finding.cure}" for finding in found), found


@pytest.mark.parametrize("changed", [case[2] for case in FOUND], ids=[case[0] for case in FOUND])
def test_a_path_that_users_can_make_lead_elsewhere_is_not_for_root(changed: Change) -> None:
    """Else one could have /etc/passwd copied over by a link in the place of a folder of his, or / unmounted."""
    free = dataclasses.replace(changed, container={**changed.container, "fixed": ()})
    for finding in free.find():
        for _, _, typed in (part.partition(" -- ") for part in finding.cure.split("lxc-attach -P ")[1:]):
            assert typed.startswith(("su -s /bin/sh -c ", "ip link delete dev ")), finding


@pytest.mark.parametrize(("code", "changed"), NOT_FOUND, ids=[case[0] for case in NOT_FOUND])
def test_not_found(code: str, changed: Change) -> None:
    assert code not in {finding.code for finding in changed.find()}


@pytest.mark.parametrize(("code", "severity", "changed"), STARTED, ids=[case[0] for case in STARTED])
def test_found_without_memory(code: str, severity: Severity | None, changed: Change) -> None:
    found = {finding.severity for finding in without_memory(changed) if finding.code == code}
    assert found == ({severity} if severity else set())


@pytest.mark.parametrize(("code", "changed"), [(case[0], case[2]) for case in FOUND], ids=[case[0] for case in FOUND])
def test_without_memory_only_what_is_of_it_alone_is_not_found(code: str, changed: Change) -> None:
    if (code, None) in {case[:2] for case in STARTED}:
        return  # it depends on which program, or which mount
    assert (code in {finding.code for finding in without_memory(changed)}) is not codes()[code].memory_only


def without_memory(changed: Change) -> list[Finding]:
    return dataclasses.replace(changed, options=changed.options | {"memory": False}).find()


def test_every_code_is_tested() -> None:
    """Those of a move that is under way, or over, are no facts: tests/stages/test_check.py."""
    assert {case[0] for case in FOUND} | {"under-way", "moved-away"} == set(codes())


@pytest.mark.parametrize("changed", [case[2] for case in FOUND], ids=[case[0] for case in FOUND])
def test_sentences(changed: Change) -> None:
    """A message is a sentence; a blocking finding has a cure."""
    for finding in changed.find():
        assert finding.message.endswith((".", ")"))
        assert "  " not in finding.message and "\n" not in finding.message
        assert finding.cure or finding.severity is not Severity.ERROR


def test_severity_is_the_codes_own_or_milder() -> None:
    """Only a code that says so in its test data departs from its usual severity."""
    departing = {code for code, severity, _, _ in FOUND if severity is not codes()[code].severity}
    assert departing == {"criu-versions-differ", "lxc-versions-differ", "address-taken", "mac-taken", "selinux-differs",
                         "include-differs", "apparmor-profile-missing", "disk-stays-behind"}


def test_errors_come_first() -> None:
    changed = Change(destination={"criu.version": "", "kernel": "5.10", "storage.filesystem": "xfs", "lxc": "7.0.1"})
    severities = [finding.severity for finding in changed.find()]
    assert severities == sorted(severities, key=list(Severity).index) and len(set(severities)) == 3


def test_query_asks_for_what_the_container_needs() -> None:
    container = change(CONTAINER, {
        "mounts": BOUND, "config.mounts": BIND, "config.seccomp": "/etc/s",
        "config.hooks": (("lxc.hook.start", "/bin/x -y"), ("lxc.hook.stop", "relative")), "config.includes": INCLUDES,
    })
    container = change(container, {
        "config.nets": net(script="/bin/up x"),
        "config.cgroup": (("lxc.cgroup2.devices.allow", "/dev/kvm rw"), ("lxc.cgroup2.devices.allow", "c 1:3 r")),
    })
    query = preflight.query(container, "/pool")
    assert query.paths == ("/srv/data", "/bin/x", "/bin/up", "/etc/s", "/dev/kvm", "/etc/lxc/d/")
    assert query.includes == tuple(include.path for include in INCLUDES)


def test_query_asks_for_disks_and_for_what_is_optional() -> None:
    container = change(CONTAINER, {"config.mounts": (*DISK, MountEntry("/opt/x", "srv/data", "none",
                                                                       ("rbind", "optional"))), "mounts": BOUND})
    assert preflight.query(container, "/pool").paths == ("/srv/data", "/dev/vg0/webdata", "/opt/x")



@pytest.mark.parametrize(("here", "there", "asked"), [
    (("10.0.3.1/24",), ("10.0.3.2/24", "fd00:3::2/64"), {"10.0.3.2%lxcbr0": ("10.0.3.2", "lxcbr0", BRIDGE.mac)}),
    (("10.0.3.1/24", "10.0.4.1/24"), ("10.0.4.2/24",), {"10.0.4.2%lxcbr0": ("10.0.4.2", "lxcbr0", BRIDGE.mac)}),
    (("10.0.3.1/24",), ("10.0.3.1/24",), {}),  # one of them would have to answer itself
    (("10.0.3.1/24",), ("10.0.4.2/24",), {}),  # nobody need answer there
    (("10.0.3.1/16",), ("10.0.3.2/24",), {}),
    ((), ("10.0.3.2/24",), {}),
])
def test_whom_to_ask_on_the_bridge(here: tuple[str, ...], there: tuple[str, ...],
                                   asked: dict[str, tuple[str, str, str]]) -> None:
    source, destination = (change(host, {"interfaces": (dataclasses.replace(BRIDGE, addresses=addresses),)})
                           for host, addresses in ((SOURCE, here), (DESTINATION, there)))
    assert network_checks.to_ask(Case(source, destination, CONTAINER, PlanOptions())) == asked
    assert network_checks.to_ask(Case(source, None, CONTAINER, PlanOptions())) == {}


@settings(max_examples=tries(40, 500), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(anything(HostFacts), st.none() | anything(HostFacts), anything(ContainerFacts), anything(PlanOptions))
def test_find_never_raises(source: HostFacts, destination: HostFacts | None, container: ContainerFacts,
                           options: PlanOptions) -> None:
    found = preflight.find(source, destination, container, options)
    assert {finding.code for finding in found} <= set(codes())
    assert render(found) or not found
    verdict(found)


@pytest.mark.parametrize("place", ["", "guests/lxc.payload.c1"])
def test_a_cgroup_that_has_lxcs_own_name_is_told(place: str) -> None:
    case = change(CONTAINER, {"config.cgroup_place": place})
    assert "cgroup-place" not in {each.code for each in preflight.find(SOURCE, DESTINATION, case)}
