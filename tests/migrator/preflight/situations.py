# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts that bring a finding up, at least one for each code."""

from __future__ import annotations

import dataclasses

from migrator.config.lxc_settings import IdMap, Include, MountEntry
from migrator.criu.criu_dump import NFTABLES_LOCK
from migrator.host.mountinfo import Mount
from migrator.host.net_state import Interface, Neighbour
from migrator.preflight.facts.host_facts import Other
from migrator.preflight.facts.task_facts import Note
from migrator.preflight.findings import Severity
from tests.migrator.made_up import BRIDGE, CPU, ETH0, GIB, LO, ROOT, SOURCE, notes
from tests.migrator.preflight.changes import Change, allows, by_lxc_net, confined, net, task

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
CGNS = "lxc-container-default-cgns"
GENERATED = "lxc-c1_</pool>"
STACKED = f"{GENERATED}//&:lxc-c1_<-pool>:unconfined"
CREDENTIALS = Mount("/run/credentials/a@1.service", "ramfs", "unsupported")


def unit(kind: str, detail: str, name: str = "redis-server.service", *, busy: bool = False) -> tuple[Note, ...]:
    """A process of a unit of systemd's was seen to have this."""
    return (Note(kind, detail, 1, 4712, "redis", 0, name, busy),)


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
    ("facts-incomplete", WARNING, Change(container={"tasks.complete": False}), "processes, descriptors or mounts"),
    ("outside-file", ERROR, task("outside-file", "/root/notes"), "/root/notes"),
    ("outside-file", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("outside-file", "/c1.ref", "session-c1.scope")}),
     "and log in again: lxc-attach -P /pool -n c1 -- loginctl terminate-session c1"),
    ("outside-file", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("outside-file", "/c2.ref", "user@1000.service")}),
     "-- loginctl terminate-user 1000"),
    ("outside-file", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("outside-file", "/3.ref")}),
     "Have redis-server.service restarted, which opens another: migrator prepare-guest c1 -P /pool --yes"),
    ("outside-file", ERROR, task("outside-file", "/c1.ref"), "which is a file of the host"),
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
    ("bpf-descriptor", ERROR, task("anon-inode", "bpf-prog"), "--for-good"),
    ("bpf-map", ERROR, task("anon-inode", "bpf-map"), "libbpf"),
    ("descriptor-kind", ERROR, task("anon-inode", "secretmem"), "secretmem"),
    ("io-uring", ERROR, Change(container={
        "seccomp_kept": "it has none", "tasks.notes": task("anon-inode", "io_uring").container["tasks.notes"]}),
     "or stop it for the move. (A seccomp rule"),
    ("io-uring", ERROR, task("anon-inode", "io_uring"), "migrator prepare-guest c1 -P /pool --yes --for-good"),
    ("socket-kind", ERROR, task("socket", "AF_VSOCK"), "AF_VSOCK"),
    ("socket-kind", ERROR, task("socket", "MPTCPv6"), "GODEBUG"),
    ("socket-unknown", WARNING, task("socket", ""), "unknown protocol"),
    ("device-open", ERROR, task("device", "char 10:229 /dev/fuse"), "/dev/fuse"),
    ("device-open", ERROR, task("device", "block 7:0 /dev/loop0"), "/dev/loop0"),
    ("socket-astray", ERROR, task("socket-astray", "/h/s leads through /proc"), "rebound: /h/s leads through"),
    ("inotify-symlink", ERROR, Change(container={
        "tasks.notes": notes(("watch-symlink", "/etc/localtime")), "fixed": ("/etc/localtime",)}),
     "mv -T /etc/localtime.copy /etc/localtime' -- and restart worker"),
    ("inotify-symlink", INFO, Change(container={
        "tasks.notes": notes(("watch-symlink", "/etc/localtime")), "init_pid": 4712}), "right before the freeze"),
    ("inotify-symlink", ERROR, task("watch-symlink", "/etc/localtime"), "or end it: kill 4712"),
    ("inotify-deleted", ERROR, task("watch-deleted", "/tmp/x"), "has been deleted"),
    ("inotify-deleted", ERROR, task("watch-hidden", "/tmp/x"), "hidden"),
    ("inotify-unknown", WARNING, task("watch-unknown", "inode 5 of device 0:9"), "inode 5"),
    ("seccomp-copy-outdated", WARNING, Change(container={"seccomp_changed": "/usr/share/lxc/config/common.seccomp"}),
     "Make it again, for the next start: migrator prepare-guest c1 -P /pool --yes --for-good"),
    ("runit-guest", WARNING, Change(container={"init_name": "runsvdir"}), "by the device and inode numbers"),
    ("systemd-guest", INFO, Change(container={"init_name": "systemd"}), "systemd"),
    # mounts
    ("mount-unsupported", ERROR, Change(container={"mounts": (ROOT, Mount("/m", "nfs4", "unsupported"))}), "nfs4"),
    ("mount-unsupported", ERROR, task("sandbox-unsupported", "overlay /var/lib/a b"),
     "/var/lib/a b is a file system of type overlay"),
    ("mount-unsupported", INFO, Change(container={"mounts": (ROOT, CREDENTIALS), "init_name": "systemd"}),
     "right before the freeze"),
    ("mount-unsupported", ERROR, Change(container={"mounts": (ROOT, CREDENTIALS)}), "Unmount it as"),
    ("mount-unsupported", ERROR, Change(container={
        "mounts": (ROOT, CREDENTIALS), "init_name": "systemd", "tasks.notes": unit("mount-held", CREDENTIALS.target)}),
     "has it open. Have redis-server.service restarted without it: migrator prepare-guest c1 -P /pool --yes"),
    ("mount-unsupported", ERROR, Change(container={
        "mounts": (ROOT, CREDENTIALS), "init_name": "systemd",
        "tasks.notes": unit("credentials-held", CREDENTIALS.target)}),
     "has a file of it open. Stop what it is for during the move: "
     "lxc-attach -P /pool -n c1 -- systemctl stop a@1.service"),
    ("nested-namespace", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("nested-namespace", "user")}),
     "redis (process 4712 of redis-server.service) has a user namespace of its own. Have redis-server.service "
     "restarted without one: migrator prepare-guest c1 -P /pool --yes"),
    ("mount-unreachable", ERROR, task("sandbox-unreachable", "tmpfs /tmp"), "in which /tmp is a folder of a tmpfs"),
    ("mount-unreachable", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("sandbox-unreachable", "tmpfs /tmp", busy=True)}), "restarted"),
    ("mount-unreachable", INFO, Change(container={
        "init_name": "systemd", "tasks.notes": unit("sandbox-unreachable", "tmpfs /tmp")}), "right before"),
    ("mount-propagation", ERROR, task("sandbox-sharing", "tmpfs /i"), "kill 4712"),
    ("mounts-too-many", ERROR, task("mounts-unread"), "/proc/4712/mountinfo"),
    ("mounts-unread", ERROR, Change(container={
        "mounts": (), "tasks.notes": notes(("mounts-unread", "worker"))}), "/proc/4712/mountinfo"),
    ("mount-propagation", ERROR, Change(container={
        "init_name": "systemd", "tasks.notes": unit("sandbox-sharing", "tmpfs /i")}), "restarted without it"),
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
    ("cgroup-place", ERROR, Change(container={"config.cgroup_place": "lxc.payload/c1"}), "is lxc.payload/c1"),
    ("cgroup-place", ERROR, Change(container={"cgroup_shared": "/sys/fs/cgroup/lxc.payload"}), "lxc.cgroup.pattern"),
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
