# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts in, findings out: each code has facts that bring it up; the made-up hosts and container bring up none."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.config.lxc_settings import IdMap, Include, MountEntry
from migrator.host.mountinfo import Mount
from migrator.host.net_state import Interface, Neighbour
from migrator.preflight import survey
from migrator.preflight.checks import network_checks
from migrator.preflight.checks.case import Case, PlanOptions
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
from tests.migrator.made_up import BRIDGE, CONTAINER, DESTINATION, ETH0, GIB, LO, ROOT, SOURCE, anything, change, notes
from tests.migrator.preflight.changes import Change, allows, confined, net, task
from tests.migrator.preflight.situations import (
    BIND,
    BOUND,
    CGNS,
    DISK,
    ERROR,
    FOUND,
    GENERATED,
    IDMAP,
    INCLUDES,
    NFT,
    ON_DISK,
    OPTIONAL,
    STACKED,
    WARNING,
    WARY,
    WEAKER,
)

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
    assert survey.find(SOURCE, DESTINATION, CONTAINER, PlanOptions()) == []
    assert survey.find(SOURCE, None, CONTAINER) == []
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
            assert typed.startswith(("su -s /bin/sh -c ", "ip link delete dev ", "systemctl stop ",
                                     "loginctl terminate-")), finding


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


def test_disks_that_nobody_has_seen_block_a_move_without_memory_too() -> None:
    """Whoever mounts so much that it is not read: the advice is --no-memory, and that would leave them behind."""
    note = notes(("mounts-unread", ""))
    unread = without_memory(Change(container={"mounts": (), "tasks.notes": note, "tasks.complete": False}))
    assert [finding.code for finding in unread if finding.severity is Severity.ERROR] == ["mounts-unread"]
    assert verdict(unread, ["mounts-unread"]) is not Verdict.BLOCKED
    others = Change(container={"tasks.notes": note, "tasks.complete": False})
    assert "mounts-unread" not in {finding.code for finding in others.find()}, "its first process's have been read"
    assert verdict(without_memory(others)) is not Verdict.BLOCKED


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
                         "include-differs", "apparmor-profile-missing", "disk-stays-behind", "mount-unsupported",
                         "mount-unreachable", "inotify-symlink"}


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
    query = survey.query(container, "/pool")
    assert query.paths == ("/srv/data", "/bin/x", "/bin/up", "/etc/s", "/dev/kvm", "/etc/lxc/d/")
    assert query.includes == tuple(include.path for include in INCLUDES)


def test_query_asks_for_disks_and_for_what_is_optional() -> None:
    container = change(CONTAINER, {"config.mounts": (*DISK, MountEntry("/opt/x", "srv/data", "none",
                                                                       ("rbind", "optional"))), "mounts": BOUND})
    assert survey.query(container, "/pool").paths == ("/srv/data", "/dev/vg0/webdata", "/opt/x")


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
    found = survey.find(source, destination, container, options)
    assert {finding.code for finding in found} <= set(codes())
    assert render(found) or not found
    verdict(found)


@pytest.mark.parametrize("place", ["", "guests/lxc.payload.c1"])
def test_a_cgroup_that_has_lxcs_own_name_is_told(place: str) -> None:
    case = change(CONTAINER, {"config.cgroup_place": place})
    assert "cgroup-place" not in {each.code for each in survey.find(SOURCE, DESTINATION, case)}
