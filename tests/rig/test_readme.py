# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md and docs/guide.md, typed: every command in their indented blocks, on hosts set up by their own lines alone.

The rig installs with the pages' lines, on a Debian that has the pages' packages (`vagrant/rig up --hosts readme`). What
follows is typed here as it stands there, but for the SUBSTITUTES. Both are one page to `riglib.page`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness.rig import TREE, Rig, wait_for
from tunnel.tunnel_errors import PeerAbsent

sys.path.insert(0, str(TREE / "vagrant"))
try:
    from riglib import network, page, rootfs
    from riglib.by_readme import DISK, UNIT
    from riglib.run import run
finally:
    sys.path.pop(0)

if TYPE_CHECKING:
    from riglib.page import Block

HOSTS = {"alpha": "hosta", "beta": "hostb", "meet": "rendezvous"}
BOTH = ("alpha", "beta")
NO_SYSTEMD = "systemd is not PID 1 on the rig's hosts: unit.py starts what the unit's file says"
SUBSTITUTES = [
    (r"systemctl enable --now (\S+)", rf"systemctl enable \1 && python3 {UNIT} start \1", NO_SYSTEMD),
    (r"systemctl stop (\S+)", rf"python3 {UNIT} stop \1", NO_SYSTEMD),
    (r"journalctl -u (\S+)", rf"python3 {UNIT} log \1", NO_SYSTEMD),
]
"""What is typed in place of what the page says, and why. Codes and fingerprints are taken from what the hosts print."""

DEMO = "See it"
INSTALLATION = "What both hosts need"
SETUP = ["btrfs where LXC keeps its containers", "A bridge that both hosts share"]
CONTAINER = "A container to try it with"
PREPARE = "A systemd inside"
MOVES = ["In one go", "What CRIU cannot dump", "After a crash or a reboot", "Stage by stage"]
BEHIND_NAT = "Both hosts behind NAT"
NAT = ("--nat-a", "port-restricted", "--nat-b", "port-restricted")

COUNT = "/var/lib/lxc/web/rootfs/count"
FINGERPRINT = re.compile(r"#sha256:([0-9a-f]{64})")
CODE = re.compile(r"\d+-[a-z]+-[a-z]+")
CODE_LINE = re.compile(rf"^{CODE.pattern}$", re.MULTILINE)

PAGE = page.blocks(page.read())


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.filled: dict[str, str] = {}
        """What the page leaves to its reader."""
        self.said = ""
        """What the last line has printed."""

    def type(self, host: str, line: str) -> None:
        """Type one line on a host. `check` may have warnings."""
        command = self.meant(line)
        if command.startswith("tail "):  # the container needs a moment, and so does whoever reads
            file = command.split()[1]
            wait_for(lambda: self.rig.sh(HOSTS[host], f"cat {file} 2>/dev/null", check=False), f"something in {file}")
        if command.startswith("migrator tunnel ping "):  # the other host's agent needs a moment to reach the rendezvous
            wait_for(lambda: self.rig.exec(HOSTS[host], "sh", "-c", command, check=False).status != PeerAbsent.status,
                     "the other host waits at the rendezvous")
        outcome = self.rig.exec(HOSTS[host], "sh", "-c", command, check=False, limit=300)
        good = (0, 1) if command.startswith("migrator check ") else (0,)
        assert outcome.status in good, f"{host}# {line}\n{outcome}"
        print(f"{host}# {line}\n{outcome.stdout}{outcome.stderr}")
        self.said = outcome.stdout

    def meant(self, line: str) -> str:
        """What is typed for a line of the page."""
        for pattern, instead, _reason in SUBSTITUTES:
            line = re.sub(f"^{pattern}", instead, line)
        for left, filled in self.filled.items():
            line = line.replace(left, filled)
        return line

    def write(self, host: str, block: Block) -> None:
        """Write a file that the page shows. Where it has alpha's address, beta has its own."""
        text = self.meant(block.content)
        if host == "beta":
            text = text.replace("192.0.2.2/", "192.0.2.3/")
        self.rig.sh(HOSTS[host], f"mkdir -p {block.file.rpartition('/')[0]}")
        self.rig.put(HOSTS[host], block.file, text)

    def block(self, block: Block) -> None:
        """Do all that a block says: what has no prompt belongs on both hosts."""
        for host in BOTH if block.file else ():
            self.write(host, block)
        for host in BOTH:
            for line in block.plain:
                self.type(host, line)
        for host, line in block.prompted:
            self.type(host, line)

    def section(self, name: str) -> None:
        """Do all that a section says."""
        found = [block for block in PAGE if block.section == name]
        assert found, f"{' and '.join(page.FILES)} have no commands under '{name}'"
        for block in found:
            self.block(block)

    def count(self, host: str) -> list[int]:
        """What the container has counted so far."""
        return [int(line) for line in self.rig.read(HOSTS[host], COUNT).split()]

    def counts_on(self, host: str, *, anew: bool = False) -> None:
        """Its memory has come along: it counts, and has left out nothing and begun once, or twice if so told."""
        before = len(self.count(host))
        wait_for(lambda: len(self.count(host)) > before, "the container counts")
        counted = self.count(host)
        begun = [place for place, number in enumerate(counted) if number == 1]
        assert len(begun) == (2 if anew else 1), counted
        assert counted == [*range(1, begun[-1] + 1), *range(1, len(counted) - begun[-1] + 1)], counted

    def pair(self, block: Block) -> None:
        """Type a code on one host that the other has printed and waits for."""
        (inviting, invite), (joining, join) = block.prompted
        (shown,) = [line for line in block.lines if CODE.fullmatch(line)]
        with self.rig.start(HOSTS[inviting], "sh", "-c", invite) as running:
            wait_for(lambda: CODE_LINE.search(running.stdout), "a code")
            self.filled[shown] = CODE_LINE.findall(running.stdout)[0]
            self.type(joining, join)
            running.wait().expect(0)


@pytest.fixture(scope="module")
def by_readme(rig: Rig) -> Iterator[Rig]:
    """The rig, whose hosts the test makes anew; whatever comes after this module finds those that it expects."""
    yield rig
    rig.up()


def test_two_hosts_on_one_network(by_readme: Rig) -> None:
    """From a new Debian to a container that was moved in every way the page shows."""
    rig = by_readme
    rig.up("--hosts", "readme")
    # The network that the hosts' cards are in gives addresses to whoever asks, as an office's or a provider's does.
    rig.sh("client", "dnsmasq --conf-file=/dev/null --port=0 --interface=eth0 --dhcp-authoritative "
                     "--dhcp-range=192.0.2.100,192.0.2.150")
    reader = Reader(rig)
    for block in PAGE:  # up to where the rig has typed it
        if block.section == INSTALLATION and block.prompted:
            reader.block(block)
    for name in SETUP:
        reader.section(name)
    reader.section(CONTAINER)
    reader.counts_on("alpha")
    reader.section(PREPARE)  # which finds nothing to do
    one_go, without_memory, after_a_crash, by_stage = MOVES
    reader.section(one_go)
    reader.counts_on("alpha")
    reader.section(by_stage)
    reader.counts_on("beta")
    rig.migrator("hostb", "migrate", "web", "-d", "root@alpha").expect(0)
    reader.section(without_memory)
    reader.counts_on("beta", anew=True)
    reader.section(after_a_crash)
    for host in BOTH:  # what the next boot does
        assert rig.sh(HOSTS[host], "systemctl is-enabled migrator-resume").strip() == "enabled"
        rig.sh(HOSTS[host], f"python3 {UNIT} start migrator-resume")
    assert rig.sh("hostb", "lxc-ls --running").split() == ["web"]
    assert rig.sh("hosta", "lxc-ls --running").split() == []


def test_both_hosts_behind_nat(by_readme: Rig) -> None:
    """From two new Debians that cannot reach each other to a container that was moved through the tunnel."""
    rig = by_readme
    rig.up("--hosts", "readme", *NAT)
    reader = Reader(rig)
    reader.section(SETUP[0])
    reader.section(CONTAINER)
    for block in [block for block in PAGE if block.section == BEHIND_NAT]:
        if any("peer invite" in line for _, line in block.prompted):
            reader.pair(block)
        else:
            reader.block(block)
        if told := FINGERPRINT.search(reader.said):
            reader.filled["FINGERPRINT"] = told[1]
    reader.counts_on("beta")
    # Each host has the lxcbr0 that Debian's lxc-net gives it, and `check` tells them from one that they share.
    rig.migrator("hosta", "peer", "allow", "beta", "receive").expect(0)
    with rig.start("hosta", "migrator", "agent") as agent:
        wait_for(lambda: "waiting at" in agent.stderr, "an agent that waits")
        checked = rig.migrator("hostb", "check", "web", "-d", "peer:alpha", "--json").expect(1)
    (found,) = [found for found in checked.json["findings"] if found["code"] == "bridge-not-shared"]
    assert SETUP[1] in found["cure"]


def test_nothing_is_added_that_the_page_has_to_name() -> None:
    """What a host needs for migrator is on the page, or the page's reader has not got it."""
    named, of_other_hosts = {*rootfs.readme_packages()}, {*run(["sh", str(rootfs.PROVISION), "list"]).split()}
    assert not {*rootfs.DEBIAN_HAS} & (named | of_other_hosts)
    assert {"criu", "lxc", "btrfs-progs", "iptables", "nftables", "python3-lxc"} <= named


def test_the_page_has_the_rigs_network_and_disk() -> None:
    """What it shows of them is typed as it stands there."""
    (file,) = [block for block in PAGE if block.file.startswith("/etc/network/")]
    assert f"    address {network.README_NETWORK}.{network.LAN['hosta']}/24\n" in file.content
    assert any(DISK in line for block in PAGE for line in block.plain)
    assert sum("REPOSITORY" in line for line in page.installation(page.read())) == 1


def test_all_commands_of_the_page_are_typed() -> None:
    """A section whose commands are typed by nobody would drift."""
    walked = {DEMO, INSTALLATION, *SETUP, CONTAINER, PREPARE, *MOVES, BEHIND_NAT}
    assert {block.section for block in PAGE} == walked
    hosts = {host for block in PAGE if block.section != DEMO for host, _ in block.prompted}
    assert hosts == set(HOSTS)


def test_substitutes_are_needed() -> None:
    lines = [line for block in PAGE for line in [*block.plain, *(line for _, line in block.prompted)]]
    for pattern, _, reason in SUBSTITUTES:
        assert reason
        assert any(re.match(pattern, line) for line in lines), f"nothing on the page is replaced by '{pattern}'"
