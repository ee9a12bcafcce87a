# SPDX-License-Identifier: GPL-2.0-or-later
"""UNIX sockets that are bound to a path: they move along, and lead nowhere else on the other host."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import migrate, other
from tests.rig.outcomes import RUNS_AGAIN, failed

# It says to whoever connects by which socket. One connection it has accepted, one waits for that until there is /go.
ORDINARY = """
import os, select, socket, ctypes
def listening(name):
    its = socket.socket(socket.AF_UNIX)
    its.bind(name)
    its.listen(5)
    return its
for path in ("/var/lib/a", "/srv/rel"):
    os.makedirs(path, exist_ok=True)
os.symlink("/var/lib/a", "/srv/link")
names = {"plain": listening("/var/lib/a/plain"), "linked": listening("/srv/link/linked")}
os.chdir("/srv")
names["relative"] = listening("rel/relative")
was = listening("/srv/again")
client = socket.socket(socket.AF_UNIX)
client.connect("/srv/again")
accepted = was.accept()[0]
os.unlink("/srv/again")
names["again"] = listening("/srv/again")
late, waits = listening("/var/lib/a/late"), socket.socket(socket.AF_UNIX)
waits.connect("/var/lib/a/late")
if not (child := os.fork()):  # as a service with a /tmp of its own
    libc = ctypes.CDLL(None)
    assert not libc.unshare(0x20000) and not libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None)
    assert not libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    names, late = {"own": listening("/tmp/own-socket")}, None
open("/ready" if child else "/tmp/ready", "w").close()
while True:
    for its in select.select(list(names.values()), [], [], 0.1)[0]:
        its.accept()[0].sendall(*[name.encode() for name, each in names.items() if each is its])
    if late and os.path.exists("/go"):
        late.accept()[0].sendall(b"late ")
        late = None
        client.sendall(b"echo")
        accepted.sendall(accepted.recv(100))
        with open("/saying", "w") as file:
            file.write(waits.recv(100).decode() + client.recv(100).decode())
        os.rename("/saying", "/said")
"""
ASK = """
import socket, sys
for name in ("/var/lib/a/plain", "/var/lib/a/linked", "/srv/rel/relative", "/srv/again"):
    its = socket.socket(socket.AF_UNIX)
    its.connect(name)
    print(its.recv(100).decode().strip())
"""
# As any user can do it, in a folder of his own: CRIU would bind the one socket by the folder that the process has as
# its descriptor 121, and connect the other process by what it has itself as that, its /proc.
LED_ASTRAY = """
import os, socket, time
def wait(name):
    while not os.path.exists(name): time.sleep(0.01)
os.makedirs("/home/u/was")
os.makedirs("/home/u/fake/1/root/run/victim")
os.makedirs("/run/other", exist_ok=True)
os.symlink("/home/u/was", "/home/u/h")
other = socket.socket(socket.AF_UNIX)
other.bind("/run/other/s")
os.chmod("/run/other/s", 0o600)
other.listen()
os.chown("/home/u/was", 1000, 1000)
os.setegid(1000), os.seteuid(1000)
its = socket.socket(socket.AF_UNIX)
its.bind("/home/u/h/s")
its.listen()
os.seteuid(0), os.setegid(0)
if not os.fork():
    its.close()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/home/u/h/s")
    open("/home/u/connected", "w").close()
    heard = client.recv(100)
    open("/home/u/heard", "wb").write(heard)
    while True: time.sleep(1)
wait("/home/u/connected")
os.dup2(os.open("/home/u/fake", os.O_RDONLY), 121)
os.unlink("/home/u/h")
os.symlink("TARGET", "/home/u/h")
open("/ready", "w").close()
while True: time.sleep(1)
"""
TARGETS = {"the host's": ("/proc/self/fd/121/1/root/run/victim", "leads through /proc"),
           "root's in the container": ("/run/other", "leads to /run/other, and is in /home/u/was")}


def start(rig: Rig, script: str) -> None:
    rig.guest("hosta", "c1", "redis", size=1, config=["lxc.start.auto = 0"])
    rig.exec("hosta", "lxc-stop", "-k", "-n", "c1")
    rig.put("hosta", "/pool/c1/rootfs/sockets.py", script)
    before = rig.read("hosta", "/pool/c1/config").splitlines()
    kept = [line for line in before if not line.startswith("lxc.init.cmd")]
    rig.put("hosta", "/pool/c1/config", "\n".join([*kept, "lxc.init.cmd = /usr/bin/python3 /sockets.py", ""]))
    rig.exec("hosta", "lxc-start", "-n", "c1")
    wait_for(lambda: rig.exec("hosta", "test", "-e", "/pool/c1/rootfs/ready", check=False).status == 0, "it is ready")


def state(rig: Rig, host: str) -> str:
    return rig.exec(host, "lxc-info", "-n", "c1", "-sH", check=False).stdout.strip()


def own(rig: Rig, host: str) -> str:
    """Whether some process has a /tmp of its own with a socket in it."""
    return rig.sh(host, """
        for pid in $(cat /sys/fs/cgroup/lxc.payload.c1/cgroup.procs); do
            [ -S /proc/$pid/root/tmp/own-socket ] && echo own
        done; :""")


@pytest.mark.nightly
def test_what_is_bound_moves_along(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Through a link, by a relative path, deleted with another one in its place, accepted or not, in a namespace."""
    clean_hosts.allow("snapshot")
    start(rig, ORDINARY)
    wait_for(lambda: own(rig, "hosta"), "the process with a /tmp of its own is ready")
    for source in ("hosta", "hostb"):
        migrate(rig, "c1", source).expect(0)
        there = other(source)
        said = rig.exec(there, "lxc-attach", "-n", "c1", "--", "python3", "-c", ASK).stdout
        assert said.split() == ["plain", "linked", "relative", "again"]
        assert own(rig, there) == "own\n"
    rig.sh("hosta", "touch /pool/c1/rootfs/go")
    said = rig.sh("hosta", "cd /pool/c1/rootfs; timeout 60 sh -c 'while [ ! -e said ]; do sleep 0.05; done'; cat said")
    assert said == "late echo"
    assert (state(rig, "hosta"), state(rig, "hostb")) == ("RUNNING", "STOPPED")


@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS)
def test_no_name_leads_elsewhere(rig: Rig, clean_hosts: CleanHosts, target: str) -> None:
    clean_hosts.allow("snapshot")
    path, said = TARGETS[target]
    start(rig, LED_ASTRAY.replace("TARGET", path))
    listens = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/victim/s')"
    rig.sh("hostb", f"rm -rf /run/victim; mkdir -m 0700 /run/victim; python3 -c \"{listens}\"")
    look = "stat -c '%i %u %a %Z' /run/victim /run/victim/s"
    before = rig.sh("hostb", look)
    checked = rig.migrator("hosta", "check", "c1", "-d", DESTINATION, "--json")
    codes = [finding["code"] for finding in checked.json["findings"]]
    assert ("socket-astray" in codes) is ("/proc" in path)
    error = failed(migrate(rig, "c1", "hosta", "--ignore", "socket-astray"), RUNS_AGAIN, "dump-failed")
    assert f"/home/u/h/s, to which a UNIX socket is bound, {said}" in str(error["message"])
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert (state(rig, "hosta"), rig.sh("hostb", look)) == ("RUNNING", before)
    assert "heard" not in rig.sh("hosta", "ls /pool/c1/rootfs/home/u"), "nobody spoke to it"
    rig.sh("hostb", "rm -r /run/victim")
