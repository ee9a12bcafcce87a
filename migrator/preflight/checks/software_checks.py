# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel, CPU, CRIU, LXC and the other programs of both hosts."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator

from migrator.criu.criu_dump import NFTABLES_LOCK
from migrator.preflight.checks.case import Case, Check, listed
from migrator.preflight.facts import cpu
from migrator.preflight.facts.host_facts import CAP_SYS_RESOURCE, version_tuple
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
INET_SOCKETS = ("TCP", "TCPv6", "UDP", "UDPv6", "UDPLITE", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6")
CRIU_CURE = "apt-get install criu (Debian testing has a newer one)"

CRIU_MISSING = define("criu-missing", ERROR, "CRIU dumps and restores the memory; both hosts need it.",
    memory_only=True)
CRIU_OLD = define("criu-too-old", ERROR, """The container is already frozen when it is dumped, and must stay frozen;
    CRIU can do that from 4.1 on (commit 4196268ee, "seize: enable support for frozen containers").""",
    memory_only=True)
CRIU_KERNEL = define("criu-too-old-for-kernel", ERROR, """Newer kernels have changed what CRIU relies on: from 6.13 on
    the vDSO has one more mapping (CRIU 4.1), from 6.16 on SO_PASSCRED cannot be queried on network sockets (CRIU
    4.2).""",
    memory_only=True)
CRIU_GUARDS = define("criu-guard-pages", WARNING, """From Linux 6.13 on programs can have guard pages made with
    MADV_GUARD_INSTALL; CRIU carries them over from 4.2 on.""", memory_only=True)
CRIU_CHECK = define("criu-check-failed", ERROR, "`criu check` says that this kernel does not support dump or restore.",
    memory_only=True)
CRIU_DIFFERS = define("criu-versions-differ", WARNING, """CRIU reads images of older versions, but not always those of
    newer ones.""", memory_only=True)
CRIU_CONFIG = define("criu-config-file", WARNING, """CRIU reads this file before its command line, so it may change how
    containers are dumped and restored.""", memory_only=True)
CRIU_CONFIG_BAD = define("criu-config-refused", ERROR, """CRIU reads this file first and then refuses to do anything;
    liblxc reports this as "execing criu failed, is it installed?".""", memory_only=True)
CPU_DIFFERS = define("cpu-differs", ERROR, """A restored process keeps using the CPU instructions that it chose when it
    started. The comparison is that of `criu cpuinfo check`.""", memory_only=True)
CPU_UNKNOWN = define("cpu-unknown", WARNING, "`criu cpuinfo dump` gave nothing, so the processors cannot be compared.",
    memory_only=True)
ARCHITECTURE = define("architecture-differs", ERROR, "Machine code of one architecture does not run on another.")
PAGE_SIZE = define("page-size-differs", ERROR, "Memory is laid out in pages of the source's size.", memory_only=True)
KERNEL_OLDER = define("kernel-older", WARNING, """Programs may use system calls, socket options or file systems that an
    older kernel does not have; the restore would fail, and the container would keep running on the source.""")
LXC_MISSING = define("lxc-missing", ERROR, "LXC runs the container on both hosts.")
LXC_DIFFERS = define("lxc-versions-differ", WARNING, """Configuration keys and the layout of cgroups change between
    major versions of LXC.""")
PYTHON_LXC = define("python-lxc-missing", ERROR, "python3-lxc tells migrator a container's state and settings.")
PROGRAM = define("program-missing", ERROR, "A program that the move needs is not installed.")
FIREWALL = define("firewall-tool-missing", ERROR, """CRIU blocks the container's network while it is dumped and restored
    (network_lock_internal in criu/net.c): by nftables if it can on both hosts, which needs no program, otherwise by
    iptables-restore.""", memory_only=True)
MIGRATOR = define("migrator-versions-differ", WARNING, "Both hosts must speak the same protocol.")
CGROUPS = define("cgroup-not-unified", ERROR, """The container is frozen through cgroup v2, and CRIU restores its
    cgroups in one hierarchy.""")
CONTROLLERS = define("cgroup-controller-missing", ERROR, """The container does not run on the destination without its
    limits: if a controller that they need is missing, it is not restored, and LXC does not start it.""")
CONTROLLERS_IN_USE = define("cgroup-controller-in-use", ERROR, """A manager in the container, such as systemd, limits
    its own cgroups with a controller that the destination does not have.""", memory_only=True)
NO_RESOURCE = define("no-sys-resource", ERROR, """Without CAP_SYS_RESOURCE, CRIU cannot read and set the limits of
    processes of other users than root (prlimit(2)), except in a container with its own user namespace.""",
    memory_only=True)
TIME_NAMESPACE = define("no-time-namespaces", WARNING, """CRIU carries over the monotonic clock in a time namespace
    (time_namespaces(7)); without it timeouts in the container may fire early or late.""", memory_only=True)
WIREGUARD = define("wireguard-slow", WARNING, """wireguard-go had no segmentation offload before its snapshot of
    2023-12-11: the tunnel is five times slower.""")
SAME_HOST = define("same-host", ERROR, "Source and destination are one and the same system.")


@dataclasses.dataclass(frozen=True)
class Rule:
    """From this kernel on, this version of CRIU is needed."""

    kernel: tuple[int, int]
    criu: tuple[int, int]
    sockets: bool  # only if a process has a network socket
    why: str


RULES = (
    Rule((6, 13), (4, 1), False, "the kernel split the vDSO's clock pages into a mapping of their own"),
    Rule((6, 16), (4, 2), True, "the kernel refuses SO_PASSCRED on network sockets"),
)
GUARDS = Rule((6, 13), (4, 2), False, "the kernel has guard pages that this CRIU does not know")


def _number(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)


def criu_present(case: Case) -> Iterator[Finding]:
    for host in case.hosts:
        if not host.criu.version:
            yield CRIU_MISSING.found(f"CRIU is not installed on {host.name}.", f"On {host.name}: apt-get install criu")


def criu_version(case: Case) -> Iterator[Finding]:
    version = version_tuple(case.source.criu.version)
    if version and version < (4, 1):
        yield CRIU_OLD.found(
            f"{case.source.name} has CRIU {case.source.criu.version}, which cannot dump a container that stays frozen.",
            f"On {case.source.name}, install CRIU 4.1 or newer: {CRIU_CURE}",
        )


def criu_for_kernel(case: Case) -> Iterator[Finding]:
    sockets = any(note.detail in INET_SOCKETS for note in case.notes("socket"))
    for host in case.hosts:
        version = version_tuple(host.criu.version)
        if not version:
            continue
        for rule in RULES:
            if host.kernel_version >= rule.kernel and version < rule.criu and (sockets or not rule.sockets):
                holds = f", and processes of {case.container.name} hold network sockets" if rule.sockets else ""
                yield CRIU_KERNEL.found(
                    f"{host.name} has CRIU {host.criu.version} on kernel {host.kernel}: {rule.why}{holds}.",
                    f"On {host.name}, install CRIU {_number(rule.criu)} or newer: {CRIU_CURE}",
                )
        if host.kernel_version >= GUARDS.kernel and version < GUARDS.criu:
            yield CRIU_GUARDS.found(
                f"{host.name} has CRIU {host.criu.version} on kernel {host.kernel}: {GUARDS.why}.",
                f"On {host.name}, install CRIU {_number(GUARDS.criu)} or newer: {CRIU_CURE}",
            )


def criu_check(case: Case) -> Iterator[Finding]:
    for host in case.hosts:
        if host.criu.version and not host.criu.check_ok:
            lines = [line for line in host.criu.check_output.splitlines() if "Error" in line or "error" in line]
            said = (lines or host.criu.check_output.splitlines() or ["nothing"])[0].strip()
            yield CRIU_CHECK.found(f"criu check fails on {host.name}: {said[:300].rstrip('.')}.",
                                   f"See its full output on {host.name} with: criu check -v4")


def criu_same(case: Case) -> Iterator[Finding]:
    if not case.destination or not (case.source.criu.version and case.destination.criu.version):
        return
    here, there = case.source.criu.version, case.destination.criu.version
    if version_tuple(here) != version_tuple(there):
        older = version_tuple(there) < version_tuple(here)
        yield CRIU_DIFFERS.found(
            f"{case.source.name} has CRIU {here}, {case.destination.name} has {there}"
            + ("; an older CRIU may not read the images." if older else "; the way back may fail."),
            "Install the same version of CRIU on both hosts.", severity=WARNING if older else INFO,
        )


def criu_config(case: Case) -> Iterator[Finding]:
    for host in case.hosts:
        for path, fault in host.criu.config_faults:
            yield CRIU_CONFIG_BAD.found(f"CRIU on {host.name} refuses {path}: {fault.rstrip('.')}.",
                                        f"Fix that file on {host.name}, or move it away: {_away(path)}")
        for path in host.criu.config_files:
            if path in dict(host.criu.config_faults):
                continue
            yield CRIU_CONFIG.found(f"{host.name} has {path}, which changes what CRIU does.",
                                    f"Review it, and move it away for the migration: {_away(path)}")


def _away(path: str) -> str:
    return shlex.join(["mv", path, f"{path}.off"])


def processors(case: Case) -> Iterator[Finding]:
    if not case.destination or case.source.arch != case.destination.arch:
        return
    here, there = case.source.criu.cpu, case.destination.criu.cpu
    if here is None or there is None:
        blind = case.source.name if here is None else case.destination.name
        yield CPU_UNKNOWN.found(f"CRIU does not recognise the processor of {blind}.",
                                "Compare the flags in /proc/cpuinfo of both hosts.")
        return
    missing = cpu.missing(here, there)
    if missing:
        yield CPU_DIFFERS.found(
            f"{case.destination.name} ({there.name.strip() or 'its processor'}) lacks what {case.source.name} has: "
            f"{', '.join(missing)[:500]}.",
            "Move to a host whose processor has these, or give virtual machines the same processor model.",
        )


def machines(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there:
        return
    if case.source.arch != there.arch:
        yield ARCHITECTURE.found(f"{case.source.name} is {case.source.arch}, {there.name} is {there.arch}.",
                                 "Move to a host of the same architecture.")
    if case.source.page_size != there.page_size:
        yield PAGE_SIZE.found(
            f"The page size is {case.source.page_size} bytes on {case.source.name}, {there.page_size} on {there.name}.",
            "Boot a kernel with the same page size.",
        )
    here, other = case.source.kernel_version[:2], there.kernel_version[:2]
    if here and other and other < here:
        yield KERNEL_OLDER.found(f"{there.name} has kernel {there.kernel}, older than {case.source.kernel} here.",
                                 f"Boot {there.name} with a kernel that is at least as new.")
    if case.source.identity and case.source.identity == there.identity:
        yield SAME_HOST.found(f"{there.name} is this host itself.", "Name another host as the destination.")
    if not there.time_namespaces and case.source.uptime:
        yield TIME_NAMESPACE.found(
            f"The kernel of {there.name} has no time namespaces: monotonic clocks jump by "
            f"{there.uptime - case.source.uptime:+.0f} seconds.",
            "Boot a kernel with CONFIG_TIME_NS.",
        )


def lxc(case: Case) -> Iterator[Finding]:
    for host in case.hosts:
        if not host.lxc:
            yield LXC_MISSING.found(f"LXC is not installed on {host.name}.", f"On {host.name}: apt-get install lxc")
        elif not host.python_lxc:
            yield PYTHON_LXC.found(
                f"migrator on {host.name} cannot import python3-lxc.",
                f"On {host.name}: apt-get install python3-lxc; a virtual environment needs --system-site-packages.",
            )
    there = case.destination
    if there and case.source.lxc and there.lxc and version_tuple(case.source.lxc) != version_tuple(there.lxc):
        major = version_tuple(case.source.lxc)[:1] != version_tuple(there.lxc)[:1]
        yield LXC_DIFFERS.found(f"{case.source.name} has LXC {case.source.lxc}, {there.name} has {there.lxc}.",
                                "Install the same version on both hosts.", severity=WARNING if major else INFO)


# Program and package.
_PROGRAMS = (("btrfs", "btrfs-progs"), ("ip", "iproute2"), ("nsenter", "util-linux"))
_STARTED = (("lxc-start", "lxc"), ("lxc-stop", "lxc"))  # with --no-memory: on the source for the way back


def programs(case: Case) -> Iterator[Finding]:
    needed = list(_PROGRAMS)
    if not case.options.memory:
        needed += [program for program in _STARTED if all(host.lxc for host in case.hosts)]
    elif any(mount.type == "tmpfs" and mount.kind == "own" for mount in case.container.mounts):
        needed.append(("tar", "tar"))  # CRIU packs the contents of a tmpfs with it (tmpfs_dump in criu/filesystems.c)
    for host in case.hosts:
        restores = host is case.destination and host.lxc and case.options.memory
        wanted = [*needed, ("lxc-checkpoint", "lxc")] if restores else needed
        for name, package in wanted:
            if not host.has_program(name):
                yield PROGRAM.found(f"The program {name} is not installed on {host.name}.",
                                    f"On {host.name}: apt-get install {package}")


def firewall(case: Case) -> Iterator[Finding]:
    without = [host.name for host in case.hosts if host.criu.version and NFTABLES_LOCK not in host.criu.features]
    own_network = any(net.type != "none" for net in case.container.config.nets)
    for host in case.hosts if without and own_network else ():
        if host.criu.version and not host.has_program("iptables-restore"):
            yield FIREWALL.found(
                f"{host.name} has no iptables-restore, with which CRIU blocks the container's network for the dump and "
                f"the restore: CRIU on {listed(without)} cannot use nftables for that.",
                f"On {host.name}: apt-get install iptables")


def versions(case: Case) -> Iterator[Finding]:
    if case.destination and case.source.migrator != case.destination.migrator:
        yield MIGRATOR.found(
            f"{case.source.name} has migrator {case.source.migrator}, "
            f"{case.destination.name} has {case.destination.migrator}.",
            "Install the same version on both hosts.",
        )


_OFFER = "Boot {} with cgroup_no_v1=all on the kernel command line"  # it may have them in cgroup v1


def cgroups(case: Case) -> Iterator[Finding]:
    for host in case.hosts:
        if host.cgroups != "unified":
            yield CGROUPS.found(
                f"{host.name} has the cgroup layout {host.cgroups or 'unknown'}, not unified.",
                f"Boot {host.name} with systemd.unified_cgroup_hierarchy=1 on the kernel command line.",
            )
    there = case.destination
    if not there or there.cgroups != "unified":
        return
    wanted = {key.removeprefix("lxc.cgroup2.").split(".")[0] for key, _ in case.container.config.cgroup
              if key.startswith("lxc.cgroup2.")} - {"cgroup", "devices"}  # devices are controlled by a BPF program
    missing = sorted(wanted - set(there.controllers))
    if missing:
        yield CONTROLLERS.found(
            f"The configuration sets lxc.cgroup2.{missing[0]}.*, but {there.name} lacks the cgroup controllers: "
            f"{listed(missing)}.",
            f"{_OFFER.format(there.name)}, or remove the limit.",
        )
    if in_use := sorted(set(case.container.controllers) - set(there.controllers)):
        yield CONTROLLERS_IN_USE.found(
            f"{case.container.name} itself uses cgroup controllers that {there.name} lacks: {listed(in_use)}.",
            f"{_OFFER.format(there.name)}.",
        )


def capabilities(case: Case) -> Iterator[Finding]:
    others = [uid for uid in case.container.tasks.uids if uid != 0]
    if not others or case.container.config.idmaps:
        return
    for host in case.hosts:
        if host.capabilities and not host.capabilities & CAP_SYS_RESOURCE:
            yield NO_RESOURCE.found(
                f"root on {host.name} lacks CAP_SYS_RESOURCE, and {case.container.name} has processes of "
                f"user {listed([str(uid) for uid in others])}.",
                "Give the container its own user namespace (lxc.idmap), or run everything in it as root.",
            )


def tunnel(case: Case) -> Iterator[Finding]:
    for text in case.options.tunnel:
        yield WIREGUARD.found(text, "apt-get install wireguard-go from a newer release, or load the wireguard module")


CHECKS: tuple[Check, ...] = (tunnel,
    criu_present, criu_version, criu_for_kernel, criu_check, criu_same, criu_config, processors, machines, lxc,
    programs, firewall, versions, cgroups, capabilities,
)
