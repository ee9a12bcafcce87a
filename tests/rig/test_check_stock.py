# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` says of containers and hosts as a distribution sets them up, where only a real system can tell."""

from __future__ import annotations

import json
from typing import Any

from harness.rig import DESTINATION, POOL, Rig, wait_for
from tests.migrator.lxc_configs import CASES
from tests.rig.clean_hosts import CleanHosts

# Each case in a folder of its own, as container `c`, and in a process of its own: some make liblxc crash.
_ASK_LXC = """
import json, os, pathlib, sys, lxc
found = {}
for number, (name, files) in enumerate(json.load(sys.stdin).items()):
    folder = pathlib.Path(f"/tmp/lxc-configs/{number}/c")
    for file, text in files.items():
        path = folder / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            path.write_bytes(text.replace("ROOT", str(folder)).encode())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, lxc.Container("c", str(folder.parent)).get_config_item("lxc.tty.max").encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(pid, 0)
    found[name] = int(said) if said else None
print(json.dumps(found))
"""


ZERO_BYTE = "lxc.tty.max = 1\n\0\nlxc.tty.max = 2\n"  # it reads the rest no more, and so no fence there


def test_lxc_takes_and_refuses_the_configurations_that_we_say(rig: Rig) -> None:
    try:
        files = {name: case.files for name, case in CASES.items()} | {"a zero byte": {"config": ZERO_BYTE}}
        told = rig.exec("hosta", "python3", "-c", _ASK_LXC, input=json.dumps(files)).json
    finally:
        rig.exec("hosta", "rm", "-rf", "/tmp/lxc-configs")
    assert told == {name: case.terminals for name, case in CASES.items()} | {"a zero byte": 1}


def check(rig: Rig, name: str, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """What `check` finds about a container on hosta, by code."""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in rig.migrator("hosta", "check", "-P", POOL, name, *arguments, "--json").json["findings"]:
        found.setdefault(finding["code"], []).append(finding)
    return found


# --- a container as `lxc-create` makes it ---------------------------------------------------------------------

# Debian's /etc/lxc/default.conf, but for a network that would have to wait for DHCP.
STOCK = """\
lxc.net.0.type = empty
lxc.apparmor.profile = generated
lxc.apparmor.allow_nesting = 1
lxc.include = /usr/share/lxc/config/userns.conf.d/
"""


def consoles(rig: Rig, name: str) -> str:
    """The processes of a container that wait on LXC's terminals, by what their descriptors are."""
    return rig.sh("hosta", f"for pid in $(cat /sys/fs/cgroup/lxc.payload.{name}/cgroup.procs); do "
                           "readlink /proc/$pid/fd/0; done | grep -E '^/dev/(console|tty1)$'; true")


def test_a_stock_busybox_container(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Nothing of it hinders a move; test_stock_containers moves it."""
    rig.put("hosta", "/tmp/stock.conf", STOCK)
    rig.sh("hosta", f"lxc-create -n stock -P {POOL} -f /tmp/stock.conf -B btrfs -t busybox >/dev/null 2>&1; "
                    f"lxc-start -n stock -P {POOL}")
    wait_for(lambda: len(consoles(rig, "stock").split()) == 2, "getty and the console's shell wait for somebody")
    found = check(rig, "stock", "-d", DESTINATION)
    assert found.keys() == {"bind-mount"}, "its /lib is that of each host"


# --- hosts ----------------------------------------------------------------------------------------------------


def test_two_bridges_that_are_not_one_network(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "t1", "tick", ip="10.0.3.120")
    assert "bridge-not-shared" not in check(rig, "t1", "-d", DESTINATION), "hostb answers on the shared one"
    try:
        # hostb answers for it, as for each of its addresses, but by the bridge that it shares with hosta.
        rig.sh("hostb", "ip link add alone address 02:00:00:00:00:99 type bridge && ip link set alone up && "
                        "ip address add 10.0.3.99/24 dev alone")
        (found,) = check(rig, "t1", "-d", DESTINATION, "--map-bridge", "lxcbr0=alone")["bridge-not-shared"]
        assert found["severity"] == "warning" and "not 02:00:00:00:00:99" in found["message"]
        rig.sh("hostb", "sysctl -qw net.ipv4.conf.lxcbr0.arp_ignore=1")  # no longer
        (found,) = check(rig, "t1", "-d", DESTINATION, "--map-bridge", "lxcbr0=alone")["bridge-not-shared"]
        assert "10.0.3.99" in found["message"] and "nobody answers" in found["message"]
        rig.sh("hostb", "ip address replace 10.9.9.1/24 dev alone && ip address delete 10.0.3.99/24 dev alone")
        rig.sh("hosta", "ip address add 10.9.9.1/24 dev lxcbr0")
        (found,) = check(rig, "t1", "-d", DESTINATION, "--map-bridge", "lxcbr0=alone")["bridge-not-shared"]
        assert "both have the address 10.9.9.1" in found["message"]
    finally:
        rig.sh("hosta", "ip address delete 10.9.9.1/24 dev lxcbr0; true")
        rig.sh("hostb", "sysctl -qw net.ipv4.conf.lxcbr0.arp_ignore=0; ip link delete alone")


def test_a_configuration_file_that_criu_refuses(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "t1", "tick")
    try:
        rig.sh("hosta", "mkdir -p /root/.criu && echo 'log-level 4' >/root/.criu/default.conf")
        found = check(rig, "t1")
        (refused,) = found["criu-config-refused"]
        assert refused["message"] == ("CRIU on hosta refuses /root/.criu/default.conf: unrecognized option "
                                      "'--log-level'.")
        assert not found.keys() & {"criu-missing", "criu-check-failed", "cpu-unknown", "criu-config-file"}
    finally:
        rig.sh("hosta", "rm -rf /root/.criu")
