# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that hold on one host only: SELinux, seccomp, user ids, hooks, included files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from migrator.config import consent
from migrator.config.lxc_settings import Config, IdMap, Include
from migrator.criu import restore_config
from migrator.host import cgroup_limits, device_filter
from migrator.preflight.checks.case import Case, Check, listed
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
PACKAGED = "/usr/share/lxc/"  # each host's LXC brings its own
# Those that run on the host before the container does (lxc.container.conf(5)).
START_HOOKS = ("lxc.hook.pre-start", "lxc.hook.pre-mount", "lxc.hook.mount", "lxc.hook.autodev", "lxc.hook.start-host")
OTHER_HOOKS = ("lxc.hook.clone", "lxc.hook.destroy")

SELINUX = define("selinux-differs", ERROR, """Processes are restored with the SELinux context that they had; a kernel
    without SELinux has none, and one with another policy may not know it.""")
SECCOMP_NOTIFY = define("seccomp-notify", WARNING, """The process that answers the container's system calls
    (lxc.seccomp.notify.proxy) is lost when the filters are restored.""")
NO_USERNS = define("user-namespaces-off", ERROR, "The container has a user namespace, which the destination forbids.")
IDS = define("ids-not-mapped", ERROR, """The destination is itself in a user namespace in which the container's
    ids do not exist.""")
SUBIDS = define("subids-missing", WARNING, """LXC starts a container with lxc.idmap only if root may use these ids
    (/etc/subuid, /etc/subgid): the restored one runs, but could not be started again.""")
HOOKS = define("hooks", INFO, """Hooks of a start do not run when a container is restored; those of its end do run
    in the end.""", memory_only=True)
NET_SCRIPT = define("net-script-missing", ERROR, """The command of a network runs on the destination before the
    container does. Where it fails LXC does not start the container, and it is not restored.""")
HOOK_MISSING = define("hook-missing", WARNING, """A hook that the destination lacks keeps the container from starting
    again.""")
DEVICE_MISSING = define("device-missing", ERROR, """A rule of lxc.cgroup2.devices.allow may name a device by its path
    on the host. Where that is no device LXC does not start the container, and it is not restored without its rules.""")
DEVICE_RULE = define("device-rule", ERROR, """LXC does not start a container with a rule for devices that it cannot
    read, and it is not restored without its rules.""")
CGROUP_PLACE = define("cgroup-place", ERROR, """All that a container runs is frozen, and ended, by its cgroup, which is
    told by LXC's own name for it, lxc.payload. With lxc.cgroup.dir.container it has another.""")
SECCOMP_FILE = define("seccomp-profile-missing", WARNING, """The restored container keeps its filters, but could not be
    started again.""")
FSTAB = define("fstab-missing", WARNING, """LXC does not start a container whose lxc.mount.fstab it cannot read: the
    restored one runs, but could not be started again. The lines of that file travel, but not where it cannot be read,
    or an included file names one.""")
INCLUDE = define("include-unreadable", ERROR, """LXC refuses a configuration whose included file is missing or includes
    itself; a folder written with a slash at its end may be missing. Only text in UTF-8, 1 MiB in 64 files that
    are included 1,000 times in all, is carried over, and no lxc.net.N.link, name or veth.pair that no interface can
    have.""")
INCLUDE_DIFFERS = define("include-differs", WARNING, """No copy travels of an included file that the
    destination has too: what its own says holds there from the next start on.""")


CONSENT = define("consent-needed", ERROR, """Hooks run as root on the host, and mounts, devices and files outside of the
    container belong to it: a paired peer brings them along only where it was allowed to (migrator peer allow).""")


def needed_paths(container: ContainerFacts) -> tuple[str, ...]:
    """Files that the configuration names: hooks' programs, the seccomp profile, what it includes of the host's."""
    config = container.config
    commands = [*(command for _, command in config.hooks), *(net.script for net in config.nets)]
    paths = [_program(command) for command in commands] + [config.seccomp, config.mount_file, *container.included]
    paths += [path for rule in _device_rules(config) if (path := device_filter.path(*rule))]
    paths += [include.by for include in config.includes if include.by != include.path]
    return tuple(dict.fromkeys(path for path in paths if path.startswith("/")))


def _device_rules(config: Config) -> list[tuple[str, str]]:
    return [rule for rule in cgroup_limits.configured(config.cgroup) if rule[0].startswith("devices")]


def _program(command: str) -> str:
    return command.split()[0] if command.split() else ""


def selinux(case: Case) -> Iterator[Finding]:
    there = case.destination
    if there and bool(case.source.selinux) != bool(there.selinux):
        with_it, without = (case.source, there) if case.source.selinux else (there, case.source)
        context = case.container.config.selinux
        yield SELINUX.found(
            f"SELinux is on on {with_it.name} and off on {without.name}"
            + (f", and the container has the context {context}." if context else "."),
            "Use the same setting and policy on both hosts.",
            severity=ERROR if context and case.source.selinux else WARNING,
        )


def seccomp(case: Case) -> Iterator[Finding]:
    config, there = case.container.config, case.destination
    if config.seccomp_notify:
        yield SECCOMP_NOTIFY.found(
            f"{case.container.name} asks {config.seccomp_notify} about system calls.",
            "Remove lxc.seccomp.notify.proxy and the notify rules and start the container anew.",
        )
    if there and config.seccomp.startswith("/") and config.seccomp not in there.present and answered(
        config.seccomp, there
    ):
        yield SECCOMP_FILE.found(f"{there.name} has no {config.seccomp} (lxc.seccomp.profile).",
                                 f"Copy it to {there.name}.", severity=case.hinders_start)


def fstab(case: Case) -> Iterator[Finding]:
    path, there = case.container.config.mount_file, case.destination
    if there and path.startswith("/") and path not in there.present and answered(path, there):
        yield FSTAB.found(f"{there.name} has no {path} (lxc.mount.fstab).",
                          f"Write what it has as lxc.mount.entry into {case.config_file}, and take the line out.",
                          severity=case.hinders_start)


def hooks(case: Case) -> Iterator[Finding]:
    there = case.destination
    for net in case.container.config.nets:
        program = _program(net.script)
        if there and program.startswith("/") and program not in there.present and answered(program, there):
            yield NET_SCRIPT.found(f"{there.name} has no {program} (lxc.net.{net.index}.script.up).",
                                   f"Copy it to {there.name}.")
    for key, command in case.container.config.hooks:
        program = _program(command)
        if there and program.startswith("/") and program not in there.present and answered(program, there):
            severity = case.hinders_start if key in START_HOOKS else None
            yield HOOK_MISSING.found(f"{there.name} has no {program} ({key}).", f"Copy it to {there.name}.",
                                     severity=severity)
        elif key not in restore_config.LATER_HOOKS and key not in OTHER_HOOKS:
            yield HOOKS.found(f"{key} = {command[:200]} will not run at the restore.",
                              "Run what it does by hand, if the container needs it.")


def devices(case: Case) -> Iterator[Finding]:
    there = case.destination

    def number(path: str) -> tuple[str, int, int]:
        if there and answered(path, there) and there.present.get(path) not in ("device", "symlink"):
            raise FileNotFoundError
        return "c", 0, 0

    for key, value in _device_rules(case.container.config):
        try:
            device_filter.program([(key, value)], number)
        except FileNotFoundError:
            path = device_filter.path(key, value)
            yield DEVICE_MISSING.found(
                f"{there.name if there else ''} has no device {path} (lxc.cgroup2.{key}).",
                f"Make it there, or take the line out of {case.config_file} and start the container anew.")
        except ValueError:
            yield DEVICE_RULE.found(
                f"lxc.cgroup2.{key} = {value[:200]} of {case.container.name} is no rule for a device.",
                f"Correct it in {case.config_file}.")


def cgroup_place(case: Case) -> Iterator[Finding]:
    place = case.container.config.cgroup_place
    if place and not any(part.startswith("lxc.payload") for part in place.split("/")):
        yield CGROUP_PLACE.found(
            f"The cgroup of {case.container.name} is {place[:200]} (lxc.cgroup.dir.container).",
            f"Take lxc.cgroup.dir.* out of {case.config_file} and start the container anew.")


def includes(case: Case) -> Iterator[Finding]:
    container, there = case.container, case.destination
    for path, fault in container.config.faults:
        yield INCLUDE.found(f"The configuration of {container.name} cannot be carried over: {path} {fault}.",
                            f"Cure that file, or take it out of {case.config_file} (lxc.include).")
    differing = [include.path for include in container.config.includes if there and _differs(include, container, there)]
    if there and differing:
        target = shlex.quote(f"root@{there.name}")
        packaged = all(path.startswith(PACKAGED) for path in differing)
        yield INCLUDE_DIFFERS.found(
            f"{there.name} has not the same {listed(differing)}, which the configuration of {container.name} includes.",
            f"Compare them: ssh {target} cat {shlex.quote(differing[0])} | diff {shlex.quote(differing[0])} -",
            severity=INFO if packaged else None)


def _differs(include: Include, container: ContainerFacts, there: HostFacts) -> bool:
    """Whether the destination reads another file than this host under that path; a copy travels where it has none."""
    if include.path.startswith(f"{container.lxcpath}/{container.name}/"):
        return False  # it always travels
    found = there.digests.get(include.path)
    if found is None:
        return include.by != include.path and include.by in there.present  # it has the folder, without this file
    return found != include.digest


def consents(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there or not there.hooks_fix:
        return
    lines = [*case.container.reaches,
             *(f"lxc.include = {path}, which is not there," for path in case.container.included
               if path not in there.present and not path.endswith("/"))]
    if lines:
        yield CONSENT.found(
            f"{there.name} does not take from this host what reaches out of {case.container.name}: "
            f"{consent.shown(lines)}.",
            f"Remove that and start the container anew, or on {there.name}, if it trusts this host, as it says itself: "
            f"{there.hooks_fix}",
        )


def answered(path: str, there: HostFacts) -> bool:
    """Whether a host that has not named this path lacks it: of most it tells only a host that it trusts."""
    return not there.hooks_fix or consent.may_be_asked(path)


def ids(case: Case) -> Iterator[Finding]:
    maps, there = case.container.config.idmaps, case.destination
    if not maps or not there:
        return
    if there.user_namespaces == 0:
        yield NO_USERNS.found(f"{there.name} allows no user namespaces.",
                              f"On {there.name}: sysctl user.max_user_namespaces=15000")
    for wanted in maps:
        shown = f"{wanted.kind} {wanted.inside} {wanted.outside} {wanted.count}"
        known = _of_kind(wanted, there.uid_map)
        if known and not _covered(wanted, [(entry.inside, entry.count) for entry in known]):
            yield IDS.found(f"lxc.idmap = {shown} names ids that do not exist on {there.name}.",
                            f"Give {there.name} these ids where it is itself started.")
        elif there.has_program("newuidmap") and not _covered(
            wanted, [(entry.outside, entry.count) for entry in _of_kind(wanted, there.subids)]
        ):
            yield _missing_subids(case, there, wanted, shown)


def _missing_subids(case: Case, there: HostFacts, wanted: IdMap, shown: str) -> Finding:
    file = "/etc/subuid" if wanted.kind == "u" else "/etc/subgid"
    return SUBIDS.found(f"lxc.idmap = {shown} is not root's in {file} on {there.name}.",
                        f"On {there.name}: echo root:{wanted.outside}:{wanted.count} >> {file}",
                        severity=case.hinders_start)


def _of_kind(wanted: IdMap, entries: Iterable[IdMap]) -> list[IdMap]:
    return [entry for entry in entries if entry.kind == wanted.kind]


def _covered(wanted: IdMap, ranges: list[tuple[int, int]]) -> bool:
    """Whether all ids of `wanted` lie in the ranges (first, count), which may adjoin."""
    position, end = wanted.outside, wanted.outside + wanted.count
    for first, count in sorted(ranges):
        if first <= position < first + count:
            position = first + count
    return position >= end


CHECKS: tuple[Check, ...] = (selinux, seccomp, fstab, hooks, devices, cgroup_place, includes, ids, consents)
