# SPDX-License-Identifier: GPL-2.0-or-later
"""`rig up`: from whatever is there to a rig that runs as requested."""

import time
from pathlib import Path
from typing import Any

from riglib import by_readme, deb, hosts, install, machines, network, page, paths, rendezvous, rootfs, state
from riglib.errors import RigError
from riglib.machine_image import Booted
from riglib.nat import Nat
from riglib.run import say

SHAPING = ("boot.sh", "by_readme.py", "hosts.py", "machines.py", "nat.py", "network.py")
"""The parts of riglib that shape a running rig: when one changes, the rig has to be made anew."""


RIG, README, VM = "rig", "readme", "vm"
"""Kinds of LXC hosts: set up by provision.sh for tests; the way README.md tells its reader to; virtual machines."""


def bring_up(nat_a: Nat, nat_b: Nat, mbit: int | None, kind: str = RIG, *, cpu_b: str = "", kernel_b: str = "") -> None:
    """Start the rig, or bring one that already runs with these options up to date.

    Of virtual machines, hostb may have another model of CPU or the kernel of another suite.
    """
    options = {"nat_a": str(nat_a), "nat_b": str(nat_b), "mbit": mbit, "hosts": kind}
    shape = install.digest([f"vagrant/riglib/{name}" for name in SHAPING])
    with state.lock(Path(paths.LOCK)) as lock:
        started = time.monotonic()
        current = state.load()
        roots = rootfs.ensure(lock, by_readme=kind == README)
        booted = {}
        if kind == VM:
            options |= {"cpu_b": cpu_b, "kernel_b": kernel_b}
            booted["hosta"] = machines.ensure(roots[1])
            booted["hostb"] = machines.ensure(roots[1], suite=kernel_b, cpu=cpu_b)
        folders = [*roots, *(each.folder for each in booted.values())]
        wanted = {"options": options, "roots": [str(folder) for folder in folders], "shape": shape}
        if not usable(current, wanted):
            state.clean(hosts.HOSTS)
            current = build(wanted, network.plan(nat_a, nat_b, by_readme=kind == README), booted)
        update(current)
        say(f"'{paths.INSTANCE}' is up ({time.monotonic() - started:.1f} s)")


def usable(current: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a rig runs that is complete and as wanted."""
    same = current.get("phase") == "up" and all(current.get(name) == value for name, value in wanted.items())
    return same and all(state.alive(host) for host in all_hosts(wanted["options"]))


def all_hosts(options: dict[str, Any]) -> list[str]:
    """Return every host that these options need, including hidden ones."""
    second = [f"nat{side}2" for side in "ab" if options[f"nat_{side}"].startswith("double")]
    return [*hosts.HOSTS, "switch", *second]


def build(wanted: dict[str, Any], plan: network.Plan, booted: dict[str, Booted]) -> dict[str, Any]:
    """Start all hosts and connect them; the state says `building` until that is done. `booted`: virtual machines."""
    if booted:
        machines.check_room(len(booted))
    current = {"phase": "building", "addresses": plan.addresses, **wanted}
    state.save(current)
    options = wanted["options"]
    names = all_hosts(options)
    of_rig, of_guests, *of_readme = wanted["roots"][: 2 if booted else None]
    for host in names:
        if of_readme and host in by_readme.HOSTS:
            hosts.start(host, of_readme[0], of_guests, disk=by_readme.DISK)
        else:
            hosts.start(host, of_rig, of_guests, machine=host in booted)
    pids = {host: paths.host_pid(host) for host in names}
    for host in names:
        hosts.wait_booted(host)
    network.build(plan, pids, machines=list(booted))
    machines.start_all(booted, pids, plan)
    if options["mbit"]:
        network.shape(plan, pids, options["mbit"])
    hosts.introduce(plan.addresses, by_readme.ALIASES if of_readme else {})
    current["phase"] = "up"
    state.save(current)
    return current


def update(current: dict[str, Any]) -> None:
    """Install what has changed in the working tree since the last time, and save the state.

    The state says `updating` meanwhile: if this process is killed, the installers keep running, and the next `up` would
    collide with them.
    """
    options = current.get("options", {})
    steps = [("helpers", [*install.helper_files(), "vagrant/provision.sh"], install.install_helpers)]
    if options.get("hosts") == README:
        lan = options["nat_a"] == options["nat_b"] == "none"
        steps.append(("booted", [], lambda: by_readme.boot(current["addresses"], lan=lan)))
        files = [*by_readme.package_files(), *page.FILES]
        steps.append(("migrator", files, lambda: by_readme.install_migrator(lan=lan)))
    elif options.get("hosts") == VM:
        steps.append(("migrator", deb.source_files(), install_package))
    else:
        steps.append(("migrator", install.package_files(), install.install_migrator))
    wanted = {name: install.digest(files) for name, files, _ in steps}
    changed = {name for name in wanted if current.get(name) != wanted[name]}
    if changed:
        state.save(current | {"phase": "updating"})
    try:
        for name, _, step in steps:
            if name in changed:
                step()
                current[name] = wanted[name]
    except RigError:
        state.save(current)
        raise
    if options.get("hosts") != README and "setup.py" in install.package_files():
        # IPv4 only: the routers translate nothing else.
        addresses = [address for address in current["addresses"]["rendezvous"] if ":" not in address]
        second = [network.RENDEZVOUS_SECOND] if addresses[0] == network.WAN["rendezvous"] else []
        rendezvous.serve([*addresses, *second], restart="migrator" in changed)
    state.save(current)


def install_package() -> None:
    """Install migrator on virtual machines the way their users do: its Debian package."""
    install.install_migrator([rendezvous.HOST])
    machines.install()
