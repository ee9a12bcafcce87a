# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that depend on the host: SELinux, seccomp, user ids, hooks, included files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from migrator.config import consent
from migrator.config.lxc_settings import Config, IdMap, Include
from migrator.criu import restore_config
from migrator.host import cgroup_limits, cgroups, device_filter
from migrator.preflight.checks.case import Case, Check, listed
from migrator.preflight.facts.container_facts import ContainerFacts
from migrator.preflight.facts.host_facts import HostFacts
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
PACKAGED = "/usr/share/lxc/"  # part of each host's LXC package
# Those that run on the host before the container does (lxc.container.conf(5)).
START_HOOKS = ("lxc.hook.pre-start", "lxc.hook.pre-mount", "lxc.hook.mount", "lxc.hook.autodev", "lxc.hook.start-host")
OTHER_HOOKS = ("lxc.hook.clone", "lxc.hook.destroy")

SELINUX = define("selinux-differs", ERROR, """Processes are restored with the SELinux context that they had; a kernel
    without SELinux has none, and one with a different policy may not know it.""")
SECCOMP_NOTIFY = define("seccomp-notify", WARNING, """The process that answers the container's system calls
    (lxc.seccomp.notify.proxy) is lost when the filters are restored.""")
NO_USERNS = define("user-namespaces-off", ERROR, "The container has a user namespace, which the destination forbids.")
IDS = define("ids-not-mapped", ERROR, """The destination itself runs in a user namespace in which the container's ids do
    not exist.""")
SUBIDS = define("subids-missing", WARNING, """LXC starts a container with lxc.idmap only if root may use these ids
    (/etc/subuid, /etc/subgid): the restored container runs, but could not be started again.""")
HOOKS = define("hooks", INFO, """Start hooks do not run when a container is restored; stop hooks do when it ends.""",
    memory_only=True)
NET_SCRIPT = define("net-script-missing", ERROR, """The script of a network interface runs on the destination before the
    container does. If it fails, LXC does not start the container, and it is not restored.""")
HOOK_MISSING = define("hook-missing", WARNING, """If the destination lacks a hook, the container cannot be started again
    there.""")
DEVICE_MISSING = define("device-missing", ERROR, """A rule of lxc.cgroup2.devices.allow may name a device by its path on
    the host. If that is not a device, LXC does not start the container, and it is not restored without its rules.""")
DEVICE_RULE = define("device-rule", ERROR, """LXC does not start a container with a device rule that it cannot parse,
    and the container is not restored without its rules.""")
CGROUP_PLACE = define("cgroup-place", ERROR, """Everything in a container is frozen, limited, and ended, through its
    cgroup, which is recognised by LXC's own name for it, lxc.payload.NAME: any other, as lxc.cgroup.dir.container and
    lxc.cgroup.pattern make it, may hold other containers too. The container is not moved then, even if this is
    ignored.""")
SECCOMP_FILE = define("seccomp-profile-missing", WARNING, """The restored container keeps its filters, but could not be
    started again.""")
SECCOMP_OUTDATED = define("seccomp-copy-outdated", WARNING, """The container's seccomp profile is a copy, which
    prepare-guest has made of the profile of LXC's that it had. What that denies since a later change, such as an update
    of the package, is not denied to the container, not even from its next start on.""")
FSTAB = define("fstab-missing", WARNING, """LXC does not start a container whose lxc.mount.fstab it cannot read: the
    restored one runs, but could not be started again. The lines of that file move along, but not if it cannot be read,
    or if it is an included file that names it.""")
INCLUDE = define("include-unreadable", ERROR, """LXC refuses a configuration with an included file that is missing or
    includes itself; a folder written with a trailing slash may be missing. Only UTF-8 text is carried over, up to 1 MiB
    in 64 files that are included 1,000 times in all, and no lxc.net.N.link, name or veth.pair that is not a valid
    interface name.""")
INCLUDE_DIFFERS = define("include-differs", WARNING, """An included file that the destination has too is not copied:
    from the next start on, the destination's own version applies.""")


CONSENT = define("consent-needed", ERROR, """Hooks run as root on the host, and mounts, devices and files
    outside the container belong to the host: a paired peer may bring them along only if it was allowed to
    (migrator peer allow).""")


def needed_paths(container: ContainerFacts) -> tuple[str, ...]:
    """Files that the configuration names: programs of hooks, the seccomp profile, the host's included files."""
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
            f"SELinux is enabled on {with_it.name} and disabled on {without.name}"
            + (f", and the container has the context {context}." if context else "."),
            "Use the same setting and policy on both hosts.",
            severity=ERROR if context and case.source.selinux else WARNING,
        )


def seccomp(case: Case) -> Iterator[Finding]:
    config, there = case.container.config, case.destination
    if config.seccomp_notify:
        yield SECCOMP_NOTIFY.found(
            f"System calls of {case.container.name} are passed to {config.seccomp_notify}.",
            "Remove lxc.seccomp.notify.proxy and the notify rules and restart the container.",
        )
    if there and config.seccomp.startswith("/") and config.seccomp not in there.present and answered(
        config.seccomp, there
    ):
        yield SECCOMP_FILE.found(f"{there.name} has no {config.seccomp} (lxc.seccomp.profile).",
                                 f"Copy it to {there.name}.", severity=case.hinders_start)
    if profile := case.container.seccomp_changed:
        yield SECCOMP_OUTDATED.found(
            f"{profile} has changed since {config.seccomp}, which {case.container.name} uses, was made from it.",
            f"Make it again, for the next start: {case.prepare} --for-good")


def fstab(case: Case) -> Iterator[Finding]:
    path, there = case.container.config.mount_file, case.destination
    if there and path.startswith("/") and path not in there.present and answered(path, there):
        yield FSTAB.found(f"{there.name} has no {path} (lxc.mount.fstab).",
                          f"Move its lines into {case.config_file} as lxc.mount.entry, and remove lxc.mount.fstab.",
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
                              "If the container needs what it does, do that by hand.")


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
                f"Create it there, or remove the line from {case.config_file} and restart the container.")
        except ValueError:
            yield DEVICE_RULE.found(
                f"lxc.cgroup2.{key} = {value[:200]} of {case.container.name} is not a valid device rule.",
                f"Correct it in {case.config_file}.")


def cgroup_place(case: Case) -> Iterator[Finding]:
    place, name = case.container.config.cgroup_place, case.container.name
    if place and not any(cgroups.is_named(part, name) for part in place.split("/")):
        yield CGROUP_PLACE.found(
            f"The cgroup of {name} is {place[:200]} (lxc.cgroup.dir.container).",
            f"Remove lxc.cgroup.dir.* from {case.config_file} and restart the container.")
    elif case.container.cgroup_shared:
        yield CGROUP_PLACE.found(
            f"The cgroup of {name} is {case.container.cgroup_shared[:200]}.",
            f"Remove lxc.cgroup.pattern from LXC's own configuration (lxc.system.conf(5)), or lxc.cgroup.dir.* from "
            f"{case.config_file}, and restart the container.")


def includes(case: Case) -> Iterator[Finding]:
    container, there = case.container, case.destination
    for path, fault in container.config.faults:
        yield INCLUDE.found(f"The configuration of {container.name} cannot be carried over: {path} {fault}.",
                            f"Fix that file, or remove it from {case.config_file} (lxc.include).")
    differing = [include.path for include in container.config.includes if there and _differs(include, container, there)]
    if there and differing:
        target = shlex.quote(f"root@{there.name}")
        packaged = all(path.startswith(PACKAGED) for path in differing)
        yield INCLUDE_DIFFERS.found(
            f"{listed(differing)}, included by the configuration of {container.name}, differs on {there.name}.",
            f"Compare them: ssh {target} cat {shlex.quote(differing[0])} | diff {shlex.quote(differing[0])} -",
            severity=INFO if packaged else None)


def _differs(include: Include, container: ContainerFacts, there: HostFacts) -> bool:
    """Whether the destination has a different file at that path; if it has none, a copy moves along."""
    if include.path.startswith(f"{container.lxcpath}/{container.name}/"):
        return False  # it always travels
    found = there.digests.get(include.path)
    if found is None:
        return include.by != include.path and include.by in there.present  # it has the directory, but not this file
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
            f"{there.name} does not accept from this host what reaches outside {case.container.name}: "
            f"{consent.shown(lines)}.",
            f"Remove that and restart the container, or, if {there.name} trusts this host, run there what it suggests: "
            f"{there.hooks_fix}",
        )


def answered(path: str, there: HostFacts) -> bool:
    """Whether a host that has not reported this path lacks it: most paths are reported only to a trusted host."""
    return not there.hooks_fix or consent.may_be_asked(path)


def ids(case: Case) -> Iterator[Finding]:
    maps, there = case.container.config.idmaps, case.destination
    if not maps or not there:
        return
    if there.user_namespaces == 0:
        yield NO_USERNS.found(f"{there.name} does not allow user namespaces.",
                              f"On {there.name}: sysctl user.max_user_namespaces=15000")
    for wanted in maps:
        shown = f"{wanted.kind} {wanted.inside} {wanted.outside} {wanted.count}"
        known = _of_kind(wanted, there.uid_map)
        if known and not _covered(wanted, [(entry.inside, entry.count) for entry in known]):
            yield IDS.found(f"lxc.idmap = {shown} names ids that do not exist on {there.name}.",
                            f"Give {there.name} these ids where it is started itself.")
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
    """Whether all ids of `wanted` are in the ranges (first, count), which may be adjacent."""
    position, end = wanted.outside, wanted.outside + wanted.count
    for first, count in sorted(ranges):
        if first <= position < first + count:
            position = first + count
    return position >= end


CHECKS: tuple[Check, ...] = (selinux, seccomp, fstab, hooks, devices, cgroup_place, includes, ids, consents)
