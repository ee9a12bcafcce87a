# SPDX-License-Identifier: GPL-2.0-or-later
"""The rig itself: what it promises to the other tests, and that it leaves nothing on the machine.

Most of it works on an instance of its own, beside the one that the other tests share.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.rig import EXEC_LIMIT, LXC_HOSTS, PROGRAM, TREE, UP_LIMIT, Rig, wait_for
from tests.rig import machine

INSTANCE = f"{os.environ.get('MIGRATOR_RIG') or 'test'}-of-rig"
RUN = Path(f"/run/migrator-rig-{INSTANCE}")
EVERY_HOST = (*LXC_HOSTS, "client", "rendezvous", "nata", "natb")
RENDEZVOUS = ("198.51.100.5", "203.0.113.5")
CRIU_ROUND_TRIP = """
set -e
name=$1 images=/dev/shm/rig-test-$1
pid=$(lxc-info -n "$name" -p -H)
payload=$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
cgroup=/sys/fs/cgroup$payload
mkdir "$images"
trap '[ $? = 0 ] || tail -n 30 "$images"/*.log /tmp/restored >&2' EXIT
chown --reference="/proc/$pid" "$images"
while  # one that is in vfork(2) counts as frozen, but CRIU waits in vain for it
    echo 1 >"$cgroup/cgroup.freeze"
    until grep -qx "frozen 1" "$cgroup/cgroup.events"; do sleep 0.01; done
    sleep 0.05  # "frozen" comes a little early
    sed 's,.*,/proc/&/status,' "$cgroup/cgroup.threads" | xargs grep -hq '^State:[[:space:]]*[RD]'
do
    echo 0 >"$cgroup/cgroup.freeze"
    sleep 0.05
done
criu dump -t "$pid" -D "$images" -o dump.log --leave-running --freeze-cgroup "$cgroup" \
    --manage-cgroups=full --cgroup-dump-controller "" --cgroup-root ":$payload" --network-lock nftables \
    --tcp-established --file-locks --link-remap --ext-mount-map auto --force-irmap \
    --enable-external-sharing --enable-external-masters --enable-fs hugetlbfs --enable-fs tracefs --ghost-limit 256M
echo 1 >"$cgroup/cgroup.kill"  # lxc-stop would thaw it first, and it would count on
lxc-wait -n "$name" -s STOPPED -t 60
timeout 60 lxc-checkpoint -r -n "$name" -D "$images" >/tmp/restored 2>&1 </dev/null
echo 0 >"$cgroup/cgroup.freeze"
rm -r "$images"
"""


def call(*arguments: str, given: bytes = b"", limit: float = EXEC_LIMIT) -> subprocess.CompletedProcess[bytes]:
    """Run `vagrant/rig` on the instance of this module."""
    environment = os.environ | {"MIGRATOR_RIG": INSTANCE}
    return subprocess.run([PROGRAM, *arguments], input=given, capture_output=True, timeout=limit, check=False,
                          env=environment)


def text(*arguments: str) -> str:
    """What a command that must succeed prints."""
    done = call(*arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def up(*options: str) -> None:
    """Start the rig."""
    done = call("up", *options, limit=UP_LIMIT)
    assert done.returncode == 0, done.stderr.decode()


def left_behind(before: set[str]) -> list[str]:
    """What of this instance is still on the machine."""
    return sorted(line for line in [*machine.state(INSTANCE) - before, *machine.traces(INSTANCE)])


@pytest.fixture(scope="module")
def before() -> Iterator[set[str]]:
    """The machine without this instance of the rig; in the end it is gone again."""
    call("down")
    yield machine.state(INSTANCE)
    call("down")


@pytest.fixture(scope="module")
def own(before: set[str]) -> Rig:
    """A rig of this module's own, without NAT."""
    up()
    return Rig(INSTANCE)


# --- exec and copy ---


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_exec_answers_with_the_commands_status(own: Rig, status: int) -> None:
    assert call("exec", "hosta", "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize(
    ("command", "status"), [("no-such-command", 127), ("/etc/hosts", 126), ("/no/such/command", 127)]
)
def test_exec_of_what_cannot_run(own: Rig, command: str, status: int) -> None:
    done = call("exec", "hosta", "--", command)
    assert done.returncode == status
    assert command in done.stderr.decode()


def test_exec_of_a_command_that_a_signal_ends(own: Rig) -> None:
    assert call("exec", "hosta", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_exec_passes_bytes_through(own: Rig) -> None:
    data = os.urandom(3_000_001)
    assert call("exec", "hostb", "--", "cat", given=data).stdout == data


def test_exec_keeps_output_and_errors_apart(own: Rig) -> None:
    done = call("exec", "client", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_exec_hands_arguments_over_as_they_are(own: Rig) -> None:
    words = ["--", "a b", "$HOME", "*", "", "ä", "-x"]
    assert text("exec", "hosta", "--", "printf", "%s\\n", *words).splitlines() == words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_exec_passes_signals_on(own: Rig, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with own.start("hosta", "sh", "-c", script) as running:
        wait_for(lambda: running.stdout == "ready\n", "the script runs")
        running.signal(number)
        assert running.wait().status == 5
        assert running.stdout == "ready\ncaught\n"


def test_exec_takes_its_command_along(own: Rig) -> None:
    """Who loses patience with `rig exec` and kills it does not leave its command behind."""
    search = ("pgrep", "-f", "^sleep 12345")  # not `rig exec HOST -- sleep 12345`, which is about to become it
    with own.start("hosta", "sleep", "12345") as running:
        wait_for(lambda: own.exec("hosta", *search, check=False).status == 0, "it runs")
        running.signal(signal.SIGKILL)
        wait_for(lambda: own.exec("hosta", *search, check=False).status == 1, "it is gone")


def test_copy(own: Rig, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_000))
    file.chmod(0o750)
    for target in ("/tmp/copied", "/root"):
        assert call("copy", str(file), f"hostb:{target}").returncode == 0
        path = target if target != "/root" else "/root/file"
        assert call("exec", "hostb", "--", "cat", path).stdout == file.read_bytes()
        assert text("exec", "hostb", "--", "stat", "-c", "%a", path) == "750\n"
    assert call("copy", str(file), "hostb:/no/such/folder/file").returncode == 6


# --- hosts ---


def test_status(own: Rig) -> None:
    told = json.loads(text("status", "--json"))
    assert (told["instance"], told["up"], told["nat_a"]) == (INSTANCE, True, "none")
    assert set(told["hosts"]) == set(EVERY_HOST)
    assert all(host["running"] for host in told["hosts"].values())
    assert "10.0.3.3" in told["hosts"]["hostb"]["addresses"]


@pytest.mark.parametrize("host", EVERY_HOST)
def test_every_host_is_a_world_of_its_own(own: Rig, host: str) -> None:
    assert own.sh(host, "hostname") == f"{host}\n"
    assert own.sh(host, "cat /proc/1/comm") == "busybox\n"
    assert "10.255" not in own.sh(host, "ip address")
    for kind in ("mnt", "pid", "net", "uts", "ipc", "cgroup"):
        seen = own.sh(host, f"readlink /proc/self/ns/{kind}").strip()
        assert seen != str(Path(f"/proc/self/ns/{kind}").readlink())


@pytest.mark.parametrize("host", LXC_HOSTS)
def test_lxc_hosts_have_what_migrator_needs(own: Rig, host: str) -> None:
    assert own.sh(host, "findmnt -n -o FSTYPE /pool; findmnt -n -o FSTYPE /run; lxc-config lxc.lxcpath") == (
        "btrfs\ntmpfs\n/pool\n"
    )
    assert own.sh(host, "findmnt -n -o FSTYPE /sys/fs/cgroup; cat /proc/self/cgroup | grep ^0") == (
        "cgroup2\n0::/init.scope\n"
    )
    # `criu check` itself fails where CAP_SYS_RESOURCE is missing; what dumps and restores need is tried below.
    assert own.sh(host, "python3 -c 'import lxc; print(lxc.version)'")
    modules = "blake3, cryptography, lxc, paramiko, pybtrfs, pyroute2, zstandard"
    assert own.sh(host, f"/opt/migrator/venv/bin/python -c 'import {modules}'") == ""
    assert own.migrator(host, "--version").status == 0
    other = "hostb" if host == "hosta" else "hosta"
    assert own.sh(host, f"ssh -o BatchMode=yes {other} hostname") == f"{other}\n"


@pytest.mark.parametrize(("host", "other"), [("hosta", "hostb"), ("hosta", "client"), ("client", "hostb"),
                                              ("rendezvous", "hosta")])
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_without_nat_all_share_a_segment(own: Rig, host: str, other: str, family: str) -> None:
    ping = ("ping", family, "-c", "1", "-W", "10", other)
    wait_for(lambda: own.exec(host, *ping, check=False).status == 0, f"{other} answers {host}")
    assert " lladdr " in own.sh(host, f"ip {family} neighbour show to $(getent ahosts{family.replace('-', 'v')} {other}"
                                      " | cut -d' ' -f1 | head -n 1)")


def test_a_changed_tree_is_installed_again(own: Rig) -> None:
    installed = "/opt/migrator/venv/bin/migrator"
    own.exec("hosta", "rm", installed)
    up()
    assert own.exec("hosta", "test", "-e", installed, check=False).status == 1, "nothing had changed"
    state = RUN / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"migrator": "another hash"}))
    up()
    assert own.migrator("hosta", "--version").status == 0


# --- guests ---


@pytest.mark.parametrize("kind", ["tick", "userns", "memory", "redis"])
def test_guests_survive_criu(own: Rig, kind: str) -> None:
    options = {"size": "32", "dirty": "4"} if kind == "memory" else {"size": "8"} if kind == "redis" else {}
    own.guest("hosta", f"g-{kind}", kind, **options)
    try:
        told = own.probe("hosta", f"g-{kind}")
        assert (told["kind"], told["running"], told["intact"]) == (kind, True, True), told
        own.exec("hosta", "sh", "-c", CRIU_ROUND_TRIP, "sh", f"g-{kind}")
        after = own.probe("hosta", f"g-{kind}")
        assert after["intact"], after
        assert after["start"] == told["start"]
        assert after["count"] >= told["count"]
    finally:
        own.exec("hosta", "lxc-destroy", "-f", "-n", f"g-{kind}", check=False)


def test_a_systemd_guest_boots(own: Rig) -> None:
    """As Debian ships it: what fails in any container fails, and nothing else."""
    own.guest("hosta", "c8", "systemd", unprivileged=True)
    try:
        told = own.probe("hosta", "c8")
        assert told["intact"]
        assert told["system"] == ("degraded" if told["failed"] else "running")
        assert set(told["failed"]) <= {"systemd-modules-load.service", "sys-kernel-debug.mount"}
        for name in ("systemd-journald", "systemd-logind", "systemd-resolved", "dbus", "cron", "ssh", "nginx",
                     "postgresql@17-main", "redis-server", "console-getty", "container-getty@4"):
            assert told["units"][f"{name}.service"]
        query = ("lxc-attach", "-n", "c8", "--", "su", "postgres", "-c", "psql -At -c 'SHOW server_version_num'")
        assert own.exec("hosta", *query).stdout.startswith("17")
        assert own.sh("client", "ssh -o StrictHostKeyChecking=no root@10.0.3.101 hostname") == "c8\n"
        own.exec("hosta", "lxc-attach", "-n", "c8", "--", "systemctl", "restart", "nginx")
        later = own.probe("hosta", "c8")["units"]
        assert {name for name in told["units"] if later[name] != told["units"][name]} == {"nginx.service"}
    finally:
        own.exec("hosta", "lxc-destroy", "-f", "-n", "c8", check=False)


def test_a_guest_that_is_started_anew_is_told_apart(own: Rig) -> None:
    own.guest("hosta", "c1", "tick", ip="10.0.3.77")
    try:
        first = own.probe("hosta", "c1")
        own.reaches("client", "10.0.3.77")
        own.sh("hosta", "lxc-stop -k -n c1")
        stopped = own.probe("hosta", "c1")
        assert (stopped["running"], stopped["intact"], stopped["start"]) == (False, False, first["start"])
        own.sh("hosta", "lxc-start -n c1")
        wait_for(lambda: own.probe("hosta", "c1").get("start") != first["start"], "the guest counts again")
        assert not own.probe("hosta", "c1")["intact"]
    finally:
        own.exec("hosta", "lxc-destroy", "-f", "-n", "c1", check=False)
    assert own.sh("hosta", "ls /pool") == ""


def test_a_damaged_disk_or_memory_is_noticed(own: Rig) -> None:
    own.guest("hosta", "c1", "tick")
    try:
        own.sh("hosta", "sed -i 2d /pool/c1/rootfs/log")
        told = own.probe("hosta", "c1")
        assert (told["log_gapless"], told["intact"]) == (False, False)
    finally:
        own.exec("hosta", "lxc-destroy", "-f", "-n", "c1", check=False)


def test_the_client_counts(own: Rig) -> None:
    own.guest("hostb", "r1", "redis", size=1)
    try:
        with own.start("client", "python3", "/opt/rig/guests/redis_client.py", "10.0.3.100") as client:
            wait_for(lambda: "connected" in client.stderr, "the client is connected")
            wait_for(lambda: own.probe("hostb", "r1", quick=True)["count"] > 100, "it has asked a hundred times")
            frozen = own.sh("hostb", """
                freeze=/sys/fs/cgroup/lxc.payload.r1/cgroup.freeze
                echo 1 >$freeze && begun=$(date +%s%3N) && sleep 0.4
                ended=$(date +%s%3N) && echo 0 >$freeze && echo $((ended - begun)); sleep 0.2""")
            client.signal(signal.SIGTERM)
            told = client.wait().expect(0).json
        assert (told["lost"], told["wrong"], told["problem"]) == (0, 0, None)
        assert told["requests"] > 100
        assert told["longest_gap_ms"] > int(frozen) - 100
        assert own.probe("hostb", "r1")["count"] == told["requests"] + 1
        # One that breaks off is not taken for one that went well.
        with own.start("client", "python3", "/opt/rig/guests/redis_client.py", "10.0.3.100") as client:
            wait_for(lambda: "connected" in client.stderr, "the client is connected")
            own.sh("hostb", "lxc-stop -k -n r1; ip route add unreachable 10.0.3.100")
            told = client.wait().expect(1).json
        assert told["problem"]
    finally:
        own.exec("hostb", "lxc-destroy", "-f", "-n", "r1", check=False)
        own.exec("hostb", "ip", "route", "del", "unreachable", "10.0.3.100", check=False)


# --- up and down ---


def test_up_again_changes_nothing(own: Rig) -> None:
    running = [(RUN / f"{host}.pid").read_text() for host in EVERY_HOST]
    up()
    assert [(RUN / f"{host}.pid").read_text() for host in EVERY_HOST] == running


def test_a_dead_host_is_healed(own: Rig) -> None:
    pid = int((RUN / "hostb.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: call("status").returncode == 4, "the rig is incomplete")
    assert call("exec", "hostb", "--", "true").returncode == 125
    up()
    assert own.sh("hostb", "hostname") == "hostb\n"


def test_two_at_once_do_not_collide(own: Rig) -> None:
    environment = os.environ | {"MIGRATOR_RIG": INSTANCE}
    own.down()
    both = [subprocess.Popen([PROGRAM, "up"], env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(UP_LIMIT) for process in both] == [0, 0]
    assert own.sh("hosta", "hostname") == "hosta\n"


def test_down_leaves_nothing(own: Rig, before: set[str]) -> None:
    own.guest("hosta", "c1", "tick", ip="10.0.3.50")
    own.sh("hosta", "echo 1 >/sys/fs/cgroup/lxc.payload.c1/cgroup.freeze")
    namespaces = {own.sh(host, "readlink /proc/self/ns/net").strip() for host in EVERY_HOST}
    assert namespaces <= set(network_namespaces())
    assert left_behind(before)
    own.down()
    assert left_behind(before) == []
    assert not namespaces & set(network_namespaces())
    own.down()
    assert left_behind(before) == []


def network_namespaces() -> Iterator[str]:
    """Every network namespace that a process of this machine is in, but for those of other rigs.

    The kernel gives the number of one that is gone to the next: a container that is started beside us gets it.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if not machine.others((folder / "cgroup").read_text(), INSTANCE):
                yield str((folder / "ns/net").readlink())


@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8])
def test_a_killed_up_is_healed(before: set[str], after: float) -> None:
    call("down")
    environment = os.environ | {"MIGRATOR_RIG": INSTANCE}
    with subprocess.Popen([PROGRAM, "up"], env=environment, stderr=subprocess.DEVNULL) as process:
        time.sleep(after)
        process.kill()
    if after in (0.15, 0.8):
        up()
        assert text("exec", "hostb", "--", "hostname") == "hostb\n"
    call("down")
    assert left_behind(before) == []


def test_a_killed_down_is_finished_by_the_next(before: set[str]) -> None:
    environment = os.environ | {"MIGRATOR_RIG": INSTANCE}
    for after in (0.02, 0.05, 0.1):
        up()
        with subprocess.Popen([PROGRAM, "down"], env=environment) as process:
            time.sleep(after)
            process.kill()
        call("down")
        assert left_behind(before) == []


# --- NAT ---

# All at once, for as long as a connection that can be had takes many times over; prints where there is an answer.
CONNECT = """
import select, socket, sys
tried = {}
for address in sys.argv[1:]:
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex((address, 9999))
    tried[one] = address
_, answered, _ = select.select([], tried, [], 2)
for one in answered:
    if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        print(tried[one])
"""
# What only this host answers with: the routers are hosts of the rig too, each with an sshd.
LISTEN = """
import socket
listener = socket.create_server(("", 9999))
print("listening", flush=True)
while True:
    listener.accept()
"""
ONE, SEVERAL, NONE = "one", "several", "none"
NATS = {
    "full-cone": (ONE, ["other address", "other port"], 1),
    "full-cone,no-input-drop": (ONE, ["other address", "other port"], 1),
    "address-restricted": (ONE, ["other port"], 1),
    "port-restricted": (ONE, [], 1),
    "port-restricted,no-input-drop": (ONE, [], 1),
    "symmetric": (SEVERAL, [], 1),
    "double": (ONE, [], 2),
    "blocked": (NONE, [], 1),
}


@pytest.mark.parametrize("kind", NATS)
def test_nat(before: set[str], kind: str) -> None:
    """Each type does what it is named for, on either side."""
    mapped, let_in, routers = NATS[kind]
    up("--nat-a", kind, "--nat-b", kind)
    own = Rig(INSTANCE)
    for name, host in (("udp_reflector.py", "rendezvous"), ("udp_asker.py", "hosta"), ("udp_asker.py", "hostb")):
        assert call("copy", str(TREE / "tests/rig" / name), f"{host}:/tmp/").returncode == 0
    with own.start("rendezvous", "python3", "/tmp/udp_reflector.py", *RENDEZVOUS) as reflector:
        wait_for(lambda: reflector.stdout, "the reflector listens")
        for host, outside in (("hosta", "198.51.100.2"), ("hostb", "203.0.113.2")):
            told = own.exec(host, "python3", "/tmp/udp_asker.py", *RENDEZVOUS).json
            seen = {tuple(each) if each else None for each in told["mapping"]}
            assert (NONE if seen == {None} else ONE if len(seen) == 1 else SEVERAL) == mapped
            assert seen == {None} or {each[0] for each in seen if each} == {outside}
            assert told["let_in"] == let_in
    ping = own.exec("hosta", "ping", "-c", "1", "-W", "10", RENDEZVOUS[0]).stdout
    found = re.search(r"ttl=(\d+)", ping)
    assert found and int(found[1]) == 64 - routers
    # Neither host can be reached from the other, by whatever address; TCP to the outside works.
    with contextlib.ExitStack() as stack:
        for host in LXC_HOSTS:
            listening = stack.enter_context(own.start(host, "python3", "-c", LISTEN))
            wait_for(lambda: "listening" in listening.stdout, f"{host} listens")  # noqa: B023
            assert own.exec(host, "python3", "-c", CONNECT, "127.0.0.1").stdout == "127.0.0.1\n"
        for host, others in (("hosta", ("10.2.0.2", "203.0.113.2")), ("hostb", ("10.1.0.2", "198.51.100.2"))):
            assert own.exec(host, "python3", "-c", CONNECT, *others).stdout == ""
    with iperf_server(own, "rendezvous"):
        own.exec("hosta", "iperf3", "-c", RENDEZVOUS[0], "-n", "1M")


@contextlib.contextmanager
def iperf_server(own: Rig, host: str) -> Iterator[None]:
    with own.start(host, "iperf3", "-s"):
        wait_for(lambda: own.sh(host, "ss -Hlnt 'sport = :5201'"), "iperf3 listens")
        yield


def test_one_side_behind_nat(before: set[str]) -> None:
    up("--nat-b", "symmetric")
    own = Rig(INSTANCE)
    own.reaches("hostb", "198.51.100.3")
    own.reaches("hosta", RENDEZVOUS[1])
    assert own.sh("hosta", "ip -br address show lxcbr0").split()[2] == "10.0.3.1/24"


def test_containers_reach_the_outside_through_nat(before: set[str]) -> None:
    up("--nat-a", "port-restricted", "--nat-b", "port-restricted")
    own = Rig(INSTANCE)
    own.guest("hosta", "c1", "tick", ip="10.0.3.50")
    own.exec("hosta", "lxc-attach", "-n", "c1", "--", "/bin/ping", "-c", "1", RENDEZVOUS[0])


def shapers(own: Rig) -> list[int]:
    """Bits per second of the token bucket of each LXC host, where it has one."""
    told = [json.loads(own.sh(host, "tc -j qdisc show dev eth0")) for host in LXC_HOSTS]
    return [8 * each["options"]["rate"] for qdiscs in told for each in qdiscs if each["kind"] == "tbf"]


def test_shaping(before: set[str]) -> None:
    """Both directions are no faster than they may be, and are told what that is; without it there is no limit."""
    up("--mbit", "50")
    own = Rig(INSTANCE)
    assert shapers(own) == [50_000_000, 50_000_000]
    with iperf_server(own, "hostb"):
        for direction in ([], ["-R"]):
            told = json.loads(own.exec("hosta", "iperf3", "-c", "hostb", "-J", "-t", "1", *direction).stdout)
            assert 0 < told["end"]["sum_received"]["bits_per_second"] < 60e6
    up()
    assert shapers(own) == []
