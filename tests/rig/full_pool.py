# SPDX-License-Identifier: GPL-2.0-or-later
"""hostb's pool is full, and has room again."""

from __future__ import annotations

from harness.rig import Rig, wait_for


def fill(rig: Rig, leave: int) -> None:
    """Fill hostb's pool until `leave` MiB are free."""
    rig.sh("hostb", f"""free=$(df -m --output=avail /pool | tail -1)
        fallocate -l $((free - {leave}))M /pool/filler 2>/dev/null || true
        while [ $(df -m --output=avail /pool | tail -1) -gt $(({leave} + 20)) ]; do
            fallocate -o $(stat -c %s /pool/filler) -l 16M /pool/filler || break; done; sync /pool""")


def empty(rig: Rig) -> None:
    """Undo `fill`; btrfs gives the room back with one of its next transactions, which a sync ends."""
    room = "rm -f /pool/filler; btrfs filesystem sync /pool; df -m --output=avail /pool | tail -1"
    wait_for(lambda: int(rig.sh("hostb", room)) > 2000, "there is room again")
