# SPDX-License-Identifier: GPL-2.0-or-later
"""The preflight on real hosts: situations are made, `migrator check` must name them, and CRIU itself must agree."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from harness.rig import POOL, Outcome, Rig, wait_for
from tests.rig.checked import NAME, attach, check, daemon, found, guest  # noqa: F401 -- a fixture
from tests.rig.clean_hosts import CleanHosts

PYTHON = "/opt/migrator/venv/bin/python"


# Freeze, dump as migrator does, thaw; prints what CRIU said, or nothing when it was content.
DUMP = """
import pathlib, shutil, sys
from migrator.criu import criu_dump
from migrator.host import lxc
from migrator.preflight.facts import container_facts
container = lxc.Container(sys.argv[1], pathlib.Path("/pool"))
folder = pathlib.Path("/run/dump-test")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(mode=0o755)
cgroup = container.cgroup
mounts = [entry.target for entry in container_facts.gather(container, full=False).config.mounts if entry.bind]
lxc.freeze(container, cgroup)
try:
    criu_dump.dump(container.name, criu_dump.dump_command(container.init_pid, cgroup, folder, mounts), folder)
except Exception as error:
    print(error)
finally:
    lxc.thaw(container, cgroup)
    shutil.rmtree(folder)
"""


def facts(outcome: Outcome, of: str = "container") -> dict[str, Any]:
    data: dict[str, Any] = outcome.json["facts"][of]
    return data


def dump_says(rig: Rig, name: str = NAME) -> str:
    return rig.exec("hosta", PYTHON, "-", name, input=DUMP).stdout


@dataclasses.dataclass(frozen=True)
class Situation:
    perl: str
    code: str  # "" for none
    refused: str = ""  # what CRIU says when it is tried all the same


INOTIFY = '$i = syscall(253); $f = "%s"; syscall(254, $i, $f, %s) >= 0 or die $!;'
SITUATIONS = {
    "nothing": Situation("", ""),
    "uts namespace": Situation("syscall(272, 0x04000000) == 0 or die $!;", "nested-namespace", "nested uts"),
    "ipc namespace": Situation("syscall(272, 0x08000000) == 0 or die $!;", "nested-namespace", "nested ipc"),
    "user namespace": Situation("syscall(272, 0x10000000) == 0 or die $!;", "nested-namespace", "nested user"),
    "cgroup namespace": Situation("syscall(272, 0x02000000) == 0 or die $!;", "nested-namespace", "nested cgroup"),
    "mount namespace": Situation("syscall(272, 0x00020000) == 0 or die $!;", "nested-mount-namespace"),
    "net namespace": Situation("syscall(272, 0x40000000) == 0 or die $!;", "nested-mount-namespace"),
    "watched file": Situation(INOTIFY % ("/etc/passwd", 2), ""),
    "watched symlink": Situation(
        'symlink "/usr/share/zoneinfo/UTC", "/etc/localtime";' + INOTIFY % ("/etc/localtime", "0x02000002"),
        "inotify-symlink", "Can't dump that handle"),
    "watched and deleted": Situation(
        'open F, ">/tmp/gone";' + INOTIFY % ("/tmp/gone", 2) + 'unlink "/tmp/gone";', "inotify-deleted", "that handle"),
    "watched in tmpfs": Situation('open F, ">/dev/here";' + INOTIFY % ("/dev/here", 2), ""),
    "BPF map": Situation('$a = pack("LLLLx112", 2, 4, 4, 1); syscall(321, 0, $a, 128) >= 0 or die $!;', "bpf-map",
                         "bpf-map"),
    "BPF program": Situation(
        '$p = pack("C*", 0xb7, (0) x 7, 0x95, (0) x 7); $l = "GPL\\0";'
        '$a = pack("LLQQx104", 1, 2, unpack("Q", pack("p", $p)), unpack("Q", pack("p", $l)));'
        "syscall(321, 5, $a, 128) >= 0 or die $!;", "bpf-descriptor", "bpf-prog"),
    "userfaultfd": Situation("syscall(323, 0) >= 0 or die $!;", "descriptor-kind", "userfaultfd"),
    "io_uring": Situation('$p = "\\0" x 256; syscall(425, 4, $p) >= 0 or die $!;', "io-uring", "Can't"),
    "UDP socket": Situation("socket(S, AF_INET, SOCK_DGRAM, 0) or die $!;", ""),
    "MPTCP socket": Situation("syscall(41, 2, 1, 262) >= 0 or die $!;", "socket-kind", "proto 262"),
    "vsock": Situation("syscall(41, 40, 1, 0) >= 0 or die $!;", "socket-kind", "family 40"),
    "netlink socket": Situation("syscall(41, 16, 3, 0) >= 0 or die $!;", ""),
    "socket pair": Situation("socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die $!;", ""),
    "socket to the host": Situation(
        'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un("/run/shared/s")) or die $!;',
        "unix-socket-outside", "External socket"),
    "pipe with a closed end": Situation("pipe(R, W); close R;", ""),
    "small deleted file": Situation('open F, ">/tmp/small"; print F "x"; unlink "/tmp/small";', ""),
    "large deleted file": Situation(
        'open F, ">/tmp/big"; $b = "x" x 1048576; print F $b for 1..260; F->flush; unlink "/tmp/big";',
        "deleted-file-large", "ghost file"),
}


@pytest.fixture
def listener(rig: Rig) -> Iterator[None]:
    """A UNIX socket of the host in the folder that the container shares with it."""
    serve = ("import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/shared/s'); s.listen();"
             "print('listens', flush=True); kept = s.accept(); s.accept()")
    with rig.start("hosta", PYTHON, "-c", serve) as running:
        wait_for(lambda: running.stdout, "it listens")
        yield
    rig.sh("hosta", "rm -f /run/shared/s")


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(guest: Rig, name: str, request: pytest.FixtureRequest) -> None:
    situation = SITUATIONS[name]
    if "/run/shared/s" in situation.perl:
        request.getfixturevalue("listener")
    with daemon(guest, situation.perl):
        outcome = check(guest)
        assert set(found(outcome)) == {"bind-mount"} | ({situation.code} if situation.code else set())
        assert outcome.status == (30 if situation.refused else 1)
        said = dump_says(guest)
        assert situation.refused in said if situation.refused else said == ""


def sleeps(rig: Rig, seconds: int) -> None:
    """Wait for a sleep(1) of so many seconds: each test has its own, as one of another may not have ended yet."""
    wait_for(lambda: rig.exec("hosta", "pgrep", "-f", f"^sleep {seconds}$", check=False).status == 0,
             "the process runs")


def test_attached_task(guest: Rig) -> None:
    with guest.start("hosta", "lxc-attach", "-P", POOL, "-n", NAME, "--", "sleep", "1001"):
        sleeps(guest, 1001)
        outcome = check(guest)
        assert found(outcome)["attached-task"] == "error"
        assert "sleep" in facts(outcome)["tasks"]["names"]
    guest.sh("hosta", "pkill -x sleep; exit 0")


def test_task_outside_the_cgroup(guest: Rig) -> None:
    enter = f"exec nsenter -t $(lxc-info -P {POOL} -n {NAME} -pH) -a sleep 1002"
    with guest.start("hosta", "sh", "-c", enter):
        sleeps(guest, 1002)
        assert found(check(guest)).items() >= {"attached-task": "error", "outside-cgroup": "error"}.items()
    guest.sh("hosta", "pkill -x sleep; exit 0")


def test_terminal_outside(guest: Rig) -> None:
    """Someone sits in an lxc-attach: its terminal is a pseudo-terminal that lxc-attach holds."""
    play = f"import pty; pty.spawn(['lxc-attach', '-P', '{POOL}', '-n', '{NAME}', '--', 'sleep', '1003'])"
    with guest.start("hosta", PYTHON, "-c", play):
        sleeps(guest, 1003)
        assert found(check(guest)).items() >= {"attached-task": "error", "terminal-outside": "error"}.items()
    guest.sh("hosta", "pkill -x sleep; exit 0")


def test_traced_task(guest: Rig) -> None:
    ask = f"['lxc-info', '-P', '{POOL}', '-n', '{NAME}', '-pH']"
    seize = (f"import ctypes, subprocess, time; pid = int(subprocess.check_output({ask}));"
             "print(ctypes.CDLL(None).ptrace(0x4206, pid, 0, 0), flush=True); time.sleep(600)")
    with guest.start("hosta", PYTHON, "-c", seize) as tracer:
        wait_for(lambda: tracer.stdout == "0\n", "it traces")
        assert found(check(guest))["traced-task"] == "error"


def test_interface_that_cannot_be_dumped(guest: Rig) -> None:
    net = f"nsenter -t $(lxc-info -P {POOL} -n {NAME} -pH) -n ip link"
    guest.sh("hosta", f"{net} add x0 type ifb")
    assert found(check(guest))["interface-kind"] == "error"
    assert "Unsupported link" in dump_says(guest)
    guest.sh("hosta", f"{net} delete x0; {net} add x0 type bridge")
    assert "interface-kind" not in found(check(guest))
    assert dump_says(guest) == ""
    guest.sh("hosta", f"{net} delete x0")


def test_network_state_that_criu_leaves_out(guest: Rig) -> None:
    """A group is joined for an address, as the kernel does that with a socket of its own (`autojoin`)."""
    assert not {"multicast-groups", "routing-not-saved", "kernel-encryption"} & found(check(guest)).keys()
    ip = f"nsenter -t $(lxc-info -P {POOL} -n {NAME} -pH) -n ip"
    guest.sh("hosta", f"{ip} address add 239.1.2.3/32 dev eth0 autojoin; {ip} rule add iif eth0 lookup 100;"
                      f" {ip} xfrm policy add dir out dst 192.0.2.1/32 tmpl proto esp mode transport")
    outcome = check(guest)
    guest.sh("hosta", f"{ip} address delete 239.1.2.3/32 dev eth0; {ip} rule delete iif eth0 lookup 100;"
                      f" {ip} xfrm policy flush")
    assert found(outcome)["multicast-groups"] == found(outcome)["routing-not-saved"] == "warning"
    assert found(outcome)["kernel-encryption"] == "error" and facts(outcome)["encrypted"] == ["IPsec"]
    assert facts(outcome)["unsaved"] == {"groups": ["239.1.2.3 on eth0"], "tables": ["100"], "rules": [], "queues": []}


def test_what_is_encrypted_in_a_network_namespace_of_its_own(guest: Rig) -> None:
    with daemon(guest, SITUATIONS["net namespace"].perl):
        guest.sh("hosta", "nsenter -t $(pgrep -x -r D,R,S worker) -n"
                          " ip xfrm policy add dir out dst 192.0.2.1/32 tmpl proto esp mode transport")
        outcome = check(guest)
        assert found(outcome)["kernel-encryption"] == "error"
        assert (facts(outcome)["networks"], facts(outcome)["encrypted"]) == (2, ["IPsec"])


def test_file_system_that_cannot_be_dumped(guest: Rig) -> None:
    attach(guest, "mount", "-t", "ramfs", "none", "/mnt")
    assert found(check(guest))["mount-unsupported"] == "error"
    assert "unsupported" in dump_says(guest)
    attach(guest, "umount", "/mnt")
    attach(guest, "mount", "-t", "overlay", "none", "-o", "lowerdir=/bin:/srv", "/mnt")
    assert found(check(guest))["mount-unsupported"] == "error"  # CRIU would take it, and the folders that hostb has
    attach(guest, "umount", "/mnt")


def test_nested_subvolume(guest: Rig) -> None:
    """What is advised, typed to the letter, makes it a folder with the same files; what is mounted in it is kept."""
    guest.sh("hosta", f"btrfs -q subvolume create {POOL}/{NAME}/rootfs/inner")
    attach(guest, "sh", "-c", "echo 2 >/inner/file; mkdir /inner/mnt")
    (finding,) = (each for each in check(guest).json["findings"] if each["code"] == "nested-subvolume")
    assert finding["severity"] == "error"
    first, second = re.findall(r": (lxc-attach .*?)(?: -- and once|$)", finding["cure"])
    guest.sh("hosta", first)
    attach(guest, "mount", "-t", "tmpfs", "none", "/inner.subvolume/inner/mnt")
    attach(guest, "sh", "-c", "echo 3 >/inner.subvolume/inner/mnt/file")
    assert guest.exec("hosta", "sh", "-c", second, check=False).status  # what is mounted in it
    assert attach(guest, "cat", "/inner/file", "/inner.subvolume/inner/mnt/file").split() == ["2", "3"]
    attach(guest, "umount", "/inner.subvolume/inner/mnt")
    guest.sh("hosta", second)
    assert "nested-subvolume" not in found(check(guest))
    assert attach(guest, "cat", "/inner/file").split() == ["2"]
    attach(guest, "rm", "-r", "/inner")


# --- the destination ------------------------------------------------------------------------------------------


def test_bridge_and_exit_statuses(guest: Rig) -> None:
    """Ready with warnings, blocked, and what --ignore makes of it."""
    assert check(guest).status == 1
    blocked = check(guest, "--map-bridge", "lxcbr0=br9").expect(30)
    assert found(blocked)["bridge-missing"] == "error"
    assert "--map-bridge lxcbr0=lxcbr0" in str(blocked.json)
    ignored = check(guest, "--map-bridge", "lxcbr0=br9", "--ignore", "bridge-missing").expect(1)
    assert found(ignored)["bridge-missing"] == "warning"
    check(guest, "--ignore", "no-such-code").expect(2)


def test_places_that_do_not_do(guest: Rig) -> None:
    assert found(check(guest, "--destination-lxcpath", "/root")).items() >= {"destination-not-btrfs": "error"}.items()
    assert found(check(guest, "--destination-lxcpath", f"{POOL}/new"))["lxcpath-missing"] == "error"


def test_source_alone(guest: Rig) -> None:
    outcome = check(guest, destination=None).expect(1)
    assert facts(outcome, "destination") is None


def test_taken(guest: Rig) -> None:
    """Name, addresses and hardware address; first while the other runs, then while it is stopped."""
    mac = facts(check(guest))["config"]["nets"][0]["hwaddr"]
    guest.guest("hostb", NAME, "tick", ip="10.0.3.200")
    guest.guest("hostb", "other", "tick", ip="10.0.3.201")
    guest.sh("hostb", "lxc-stop -k -P /pool other; sed -i 's/10.0.3.201/10.0.3.100/; "
                      f"s/^lxc.net.0.hwaddr.*/lxc.net.0.hwaddr = {mac}/' /pool/other/config")
    assert found(check(guest)).items() >= {
        "name-taken": "error", "address-taken": "warning", "mac-taken": "warning"}.items()
    guest.sh("hostb", "ip address add 10.0.3.100/24 dev lxcbr0")
    assert found(check(guest))["address-taken"] == "error"
    guest.sh("hostb", "ip address delete 10.0.3.100/24 dev lxcbr0; lxc-stop -k -P /pool redis; cd /pool; "
                      "for name in redis other; do btrfs -q subvolume delete $name/rootfs; rm -r $name; done")


def test_what_the_hosts_are(guest: Rig) -> None:
    """Facts about both, against what other programs say of them."""
    outcome = check(guest)
    for of, host in (("source", "hosta"), ("destination", "hostb")):
        known = facts(outcome, of)
        assert known["name"] == guest.sh(host, "hostname").strip()
        assert known["kernel"] == guest.sh(host, "uname -r").strip()
        assert f"Version: {known['criu']['version']}\n" in guest.sh(host, "criu --version")
        assert known["lxc"] == guest.sh(host, "lxc-start --version").strip()
        assert known["criu"]["check_ok"] and known["python_lxc"] and known["cgroups"] == "unified"
        assert known["storage"]["filesystem"] == "btrfs"
        assert {"name": "lxcbr0", "kind": "bridge"}.items() <= next(
            entry for entry in known["interfaces"] if entry["name"] == "lxcbr0").items()
    container = facts(outcome)
    assert container["init_name"] == "redis-server" and container["rootfs"]["subvolume"]
    assert container["memory"] > 64 << 20 and container["rootfs"]["used"] > 50 << 20
    assert {"TCP"} <= {note["detail"] for note in container["tasks"]["notes"] if note["kind"] == "socket"}
    assert any(entry["addresses"][0] == "10.0.3.100/24" for entry in container["interfaces"] if entry["kind"] == "veth")


def test_processors_are_compared_as_criu_does(guest: Rig) -> None:
    """Images of processors that have more or less than this one: our verdict and that of `criu cpuinfo check`."""
    script = """
import dataclasses, json, pathlib, subprocess, tempfile
from migrator.preflight.facts import cpu
def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128]); number >>= 7
    return out + bytes([number])
def image(made):
    pairs = [(1, made.vendor), (2, made.family), (3, made.model), (4, made.stepping), (5, 2)]
    pairs += [(6, word) for word in made.capability]
    pairs += [(8, made.xfeatures), (9, made.xsave_size), (10, made.xsave_size_max)]
    entry = b"".join(varint(field << 3) + varint(value) for field, value in pairs) + varint(58)
    entry += varint(len(made.name)) + made.name.encode()
    body = varint(10) + varint(len(entry)) + entry
    return cpu.MAGICS + len(body).to_bytes(4, "little") + body
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "cpuinfo.img")
    subprocess.run(["criu", "cpuinfo", "dump", "-D", folder], check=True)
    here = cpu.parse_image(path.read_bytes())
    variants = {"same": here, "xfeatures": dataclasses.replace(here, xfeatures=here.xfeatures | 1 << 18),
                "size": dataclasses.replace(here, xsave_size=here.xsave_size + 64)}
    for word in range(19):
        for bit in range(32):
            words = list(here.capability)
            words[word] ^= 1 << bit
            if bit % 5 == word % 5:
                variants[f"{word}.{bit}"] = dataclasses.replace(here, capability=tuple(words))
    wrong = {}
    for name, made in variants.items():
        path.write_bytes(image(made))
        theirs = subprocess.run(["criu", "cpuinfo", "check", "-D", folder], capture_output=True).returncode == 0
        if theirs != (not cpu.missing(made, here)):
            wrong[name] = theirs
    print(json.dumps({"wrong": wrong, "variants": len(variants)}))
"""
    answer = json.loads(guest.exec("hosta", PYTHON, "-", input=script).stdout)
    assert answer["wrong"] == {} and answer["variants"] > 100


# --- containers with a configuration of their own ---------------------------------------------------------------

CONFIGURED: dict[str, tuple[list[str], dict[str, str]]] = {
    "bind": (["lxc.mount.entry = /srv srv none bind,create=dir"], {"bind-mount": "warning"}),
    "missing": (["lxc.mount.entry = /run/only-here mnt none bind,create=dir"],
                {"bind-mount": "warning", "mount-source-missing": "error"}),
    "symlink": (["lxc.mount.entry = /lib lib none ro,bind,create=dir"], {"bind-mount": "warning"}),
    "device": (["lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file"], {}),
    "tmpfs": (["lxc.mount.entry = tmpfs tmp tmpfs rw,create=dir"], {}),
    "ttys": (["lxc.tty.max = 2"], {}),
    "apparmor": (["lxc.apparmor.profile = generated"], {}),  # nothing is confined without AppArmor
    "hook": (["lxc.hook.pre-start = /bin/true"], {"hooks": "info"}),
    "limit": (["lxc.cgroup2.pids.max = 100"], {"cgroup-controller-missing": "error"}),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_configured(rig: Rig, clean_hosts: CleanHosts, name: str) -> None:
    lines, codes = CONFIGURED[name]
    rig.sh("hosta", "mkdir -p /run/only-here")
    late = name in ("apparmor", "limit")  # a container with such a line cannot be started here
    rig.guest("hosta", "c1", "tick", **({} if late else {"config": lines}))
    if late:
        rig.sh("hosta", f"echo '{lines[0]}' >>/pool/c1/config")
    outcome = check(rig, name="c1")
    assert found(outcome) == codes
    rig.sh("hosta", "rm -r /run/only-here")


def test_user_namespace(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "u1", "userns")
    assert found(check(rig, name="u1")) == {}
    rig.sh("hostb", "cp -p /etc/subuid /root/subuid && : >/etc/subuid")
    try:
        assert found(check(rig, name="u1")) == {"subids-missing": "warning"}
    finally:
        rig.sh("hostb", "cat /root/subuid >/etc/subuid; rm /root/subuid")


def test_a_task_that_is_not_root(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Without a user namespace it can be dumped only where root has CAP_SYS_RESOURCE."""
    capable = int(rig.sh("hosta", "sed -n 's/^CapEff:\\s*//p' /proc/self/status"), 16) & 1 << 24
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "lxc-attach -P /pool -n c1 -u 1000 -g 1000 -- /bin/busybox setsid /bin/busybox sleep 1000 "
                    "</dev/null >/dev/null 2>&1 &")
    runs = ("pgrep", "-u", "1000", "-f", "^/bin/busybox sleep 1000$")
    wait_for(lambda: rig.exec("hosta", *runs, check=False).status == 0, "the task runs")
    assert found(check(rig, name="c1")).get("no-sys-resource") == (None if capable else "error")
    rig.sh("hosta", "pkill -f '[b]usybox sleep 1000'; exit 0")  # by its name alone it is the host's init, too


def test_stopped(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "lxc-stop -k -P /pool c1")
    assert found(check(rig, name="c1").expect(30)) == {"container-not-running": "error"}


def test_session_and_files_of_the_host(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Its parent is gone, but its session's leader is outside, and so is the file that it writes to."""
    rig.guest("hosta", "c1", "tick")
    rig.sh("hosta", "lxc-attach -P /pool -n c1 -- sh -c 'sleep 1000 &' </dev/null >/root/output 2>&1")
    outcome = check(rig, name="c1")
    assert found(outcome) == {"session-outside": "error", "outside-file": "error"}
    assert "/root/output" in str(outcome.json["findings"])
    assert "session leader" in dump_says(rig, "c1")
    rig.sh("hosta", "rm /root/output")
