# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of the matrix: what strikes while every migration is held at its step."""

from __future__ import annotations

import time

from harness.rig import LXC_HOSTS, Rig, wait_for
from tests.rig.faults import Column, Fault

SOURCE, DESTINATION = LXC_HOSTS
SHORT_CUT = 5.0  # seconds
PATIENCE = "8"  # seconds of --timeout, where a test has to wait until it is over

_SIGNAL = """for folder in /proc/[0-9]*; do
    [ "$(cat $folder/comm 2>/dev/null)" != migrator ] || kill -{number} ${{folder#/proc/}} 2>/dev/null
done; true"""


def _signal(rig: Rig, host: str, number: int) -> None:
    """To every migrator of a host at once."""
    rig.sh(host, _SIGNAL.format(number=number))


def kill_source(column: Column) -> None:
    _signal(column.rig, SOURCE, 9)


def kill_destination(column: Column) -> None:
    _signal(column.rig, DESTINATION, 9)


def kill_both(column: Column) -> None:
    kill_source(column)
    kill_destination(column)


def interrupt(column: Column) -> None:
    _signal(column.rig, SOURCE, 2)


def cut_shortly(column: Column) -> None:
    _cut(column.rig)
    column.release()
    time.sleep(SHORT_CUT)
    _mend(column.rig)


def cut_for_long(column: Column) -> None:
    """Until every source has given up."""
    _cut(column.rig)
    column.release()
    column.wait_for_ends()
    _mend(column.rig)


def interrupt_while_cut(column: Column) -> None:
    """Ctrl-C, and the destination cannot be told."""
    _cut(column.rig)
    interrupt(column)
    column.release()
    column.wait_for_ends()
    _mend(column.rig)


def fill_disk(column: Column) -> None:
    """The destination's pool is full until every source has given up or got through."""
    fill(column.rig)
    try:
        column.release()
        column.wait_for_ends()
    finally:
        empty(column.rig)


def _cut(rig: Rig) -> None:
    """Nothing goes from host to host any more, in silence; clients still reach both, and the containers on them."""
    rules = "".join(
        f"add chain inet cut {hook} {{ type filter hook {hook} priority -300; }}\n"
        f"add rule inet cut {hook} ip {field} 10.0.3.3 drop\nadd rule inet cut {hook} ip6 {field} fd00:3::3 drop\n"
        for hook, field in (("input", "saddr"), ("output", "daddr")))
    rig.exec(SOURCE, "nft", "-f", "-", input=f"add table inet cut\n{rules}")


def _mend(rig: Rig) -> None:
    rig.exec(SOURCE, "nft", "delete", "table", "inet", "cut")


def fill(rig: Rig) -> None:
    """Fill the destination's pool to the last byte."""
    rig.sh(DESTINATION, """sync /pool; n=0
        for size in 1024M 64M 4M 256K 4K; do
            while fallocate -l $size /pool/.filler-$n 2>/dev/null; do n=$((n + 1)); done
            rm -f /pool/.filler-$n; n=$((n + 1))
        done; sync /pool; true""")


def empty(rig: Rig) -> None:
    """Undo `fill`; btrfs gives the room back with its next transaction."""
    rig.sh(DESTINATION, "rm -f /pool/.filler-*; btrfs filesystem sync /pool")
    wait_for(lambda: int(rig.sh(DESTINATION, "df -m --output=avail /pool | tail -1")) > 2000, "there is room again")


GIVES_UP_SOON = ("--timeout", PATIENCE, "--reconnect", "2", "--max-downtime", "30")
INTERRUPTED_WHILE_CUT = Fault("SIGINT, link down", interrupt_while_cut, GIVES_UP_SOON)
FAULTS = (
    Fault("source killed", kill_source),
    Fault("destination killed", kill_destination),
    Fault("both killed", kill_both),
    Fault("link down 5 s", cut_shortly),
    Fault("link down for long", cut_for_long, GIVES_UP_SOON),
    Fault("destination disk full", fill_disk),
    Fault("SIGINT", interrupt),
)
# Those that are the least alike: what a crash leaves behind, a silent line, a write that fails, an orderly end. A
# crash of one host alone, and a line that stays silent until both have given up, are in test_migrate.py,
# test_resume.py and test_failures.py.
EACH_TIME = tuple(fault for fault in FAULTS
                  if fault.name in ("both killed", "link down 5 s", "destination disk full", "SIGINT"))
