# SPDX-License-Identifier: GPL-2.0-or-later
"""AppArmor: the profiles that confine the container's processes must be loaded on the destination."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from migrator.preflight.checks.case import Case, Check
from migrator.preflight.facts.apparmor_facts import SECURITY, is_generated, profiles
from migrator.preflight.facts.host_facts import HostFacts
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
# LXC's default for lxc.apparmor.profile (AA_DEF_PROFILE_CGNS in liblxc's lsm/apparmor.c)
DEFAULT = "lxc-container-default-cgns"
PRICE = "then AppArmor no longer restrains its root, only namespaces, capabilities and seccomp do"

MISSING = define("apparmor-missing", ERROR, """Processes that AppArmor confines cannot be restored on a kernel without
    it (validate_lsm in criu/lsm.c). A container that is restarted there is not confined.""")
GENERATED = define("apparmor-generated", ERROR, """LXC loads the profile that it generates when it starts a container,
    not when it restores one, and only a loaded profile can confine the processes.""", memory_only=True)
PROFILE = define("apparmor-profile-missing", ERROR, "The profile that confines the container must be loaded.")
PARSER = define("apparmor-parser-missing", ERROR, """With lxc.apparmor.profile = generated, LXC starts a container only
    if it finds apparmor_parser, which also loads that profile for a restore.""")


def apparmor(case: Case) -> Iterator[Finding]:
    container, there = case.container, case.destination
    confined = profiles(container.apparmor.label)
    if not there:
        return
    if not there.apparmor:
        if confined:
            yield MISSING.found(
                f"The processes of {container.name} are confined by the AppArmor profile {confined[0]}, but "
                f"{there.name} has no AppArmor.",
                f"Boot a kernel with AppArmor on {there.name}; or restart {container.name} with "
                f"lxc.apparmor.profile = unconfined: {PRICE}.", severity=case.hinders_restore)
        return
    configured = container.config.apparmor
    if configured == "generated" and not there.has_program("apparmor_parser"):
        yield PARSER.found(f"{there.name} has no apparmor_parser.", f"On {there.name}: apt-get install apparmor")
    wanted = confined if case.options.memory else []  # a restore gives each process the profile it had before
    for profile in wanted:
        if not is_loaded(there, profile):
            yield _generated(case, there, profile) if is_generated(profile) else _missing(there, profile, ERROR)
    for profile in by_start(configured):
        if profile not in wanted and not is_loaded(there, profile):
            yield _missing(there, profile, case.hinders_start)


def by_start(configured: str) -> list[str]:
    """The profiles that LXC needs in order to start the container; a generated one it loads itself."""
    return [] if configured in ("generated", "unchanged", "unconfined") else [configured or DEFAULT]


def is_loaded(host: HostFacts, profile: str) -> bool:
    """Whether a host has loaded a profile, as far as is known."""
    return host.apparmor_profiles is None or profile in host.apparmor_profiles


def _generated(case: Case, there: HostFacts, profile: str) -> Finding:
    found, here = case.container.apparmor, case.source
    target = shlex.quote(f"root@{there.name}")
    load = ""
    if found.text:
        load = f"ssh {target} apparmor_parser -r < {shlex.quote(found.text)}"
    elif found.binary:  # one write(2) must bring all of it
        whole = "bs=64M iflag=fullblock"
        load = f"dd if={shlex.quote(found.binary)} {whole} | ssh {target} dd of={SECURITY}/.replace {whole}"
    return GENERATED.found(
        f"The processes of {case.container.name} are confined by the AppArmor profile {profile}, which LXC generated "
        f"for it and which is not loaded on {there.name}.",
        f"Load it there; on {here.name}: {load}" if load else
        f"Restart {case.container.name} with lxc.apparmor.profile = unconfined: {PRICE}.")


def _missing(there: HostFacts, profile: str, severity: Severity) -> Finding:
    if profile.startswith("lxc-container-default"):  # LXC's own, from its package
        load = f"On {there.name}: apt-get install apparmor lxc && apparmor_parser -r /etc/apparmor.d/lxc-containers"
    else:
        load = f"Copy its file from /etc/apparmor.d to {there.name} and load it: apparmor_parser -r FILE"
    return PROFILE.found(f"The AppArmor profile {profile} is not loaded on {there.name}.", load, severity=severity)


CHECKS: tuple[Check, ...] = (apparmor,)
