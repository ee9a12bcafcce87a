# SPDX-License-Identifier: GPL-2.0-or-later
"""What both hosts know, for a test that has failed: it need not be run again to be understood.

`tests/rig/sessions.py` puts it into the report of each test on the rig that fails, before anything is cleaned up.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from harness.rig import LXC_HOSTS, Rig

LIMIT = 120.0  # seconds, for all that is asked of one host
EVENTS = 60  # of the journal: of all migrations, or of each name that is given


def told(rig: Rig, names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """What each host says, as (title, text); with `names` the journal's events of these containers alone.

    It never fails: a host that does not answer is what there is to tell.
    """
    found = []
    for host in LXC_HOSTS:
        try:
            outcome = rig.exec(host, "sh", "-c", _TELL, "sh", str(EVENTS), *names, check=False, limit=LIMIT,
                               input=_JOURNAL)
            text = outcome.stdout + outcome.stderr
        except (OSError, subprocess.SubprocessError) as error:
            text = f"It does not answer: {error}"
        found.append((f"what {host} knew", text.rstrip()))
    return found


def as_text(sections: Sequence[tuple[str, str]]) -> str:
    """To be printed."""
    return "\n".join(f"=== {title} ===\n{text}" for title, text in sections)


# Each part by itself: whatever is broken, the others are told.
_TELL = r"""
part() { echo "--- $*"; }
part migrator status -a
timeout 40 migrator status -a 2>&1 | head -n 80
part journal: the last events
timeout 20 python3 - "$@" 2>&1
part containers
for folder in /pool/*/; do
    [ -e "${folder}config" ] || continue
    name=${folder%/} name=${name##*/}
    echo "$name" $(timeout 10 lxc-info -P /pool -n "$name" -sH 2>&1) \
        $(tr '\n' ' ' 2>/dev/null <"/sys/fs/cgroup/lxc.payload.$name/cgroup.events")
done | head -n 60
part processes
ps -eo pid,ppid,stat,wchan:24,etime,args --cols 200 2>&1 | grep -E 'PPID|migrator|criu|lxc|btrfs|ssh' |
    grep -Ev 'grep -E|ps -eo|rig-told' | head -n 60
part files of migrator
find /pool/.migrator /run/migrator -mindepth 1 -maxdepth 2 -printf '%s %p\n' 2>/dev/null | sort -k 2 | head -n 40
part room
df -m /pool /run /dev/shm 2>&1
cat /proc/loadavg
ls -t /var/log/migrator/*.log /run/migrator/*/*.log 2>/dev/null | head -n 6 | while read -r log; do
    part "$log"
    grep -n Error "$log" | tail -n 8
    tail -n 12 "$log"
done | cut -c 1-300
ls -t /var/log/lxc/*.log 2>/dev/null | head -n 2 | while read -r log; do
    part "$log"
    grep -E 'ERROR|WARN|NOTICE' "$log" | tail -n 8
done | cut -c 1-300
exit 0
"""

# Not by migrator, which may be what is broken.
_JOURNAL = """
import sqlite3, sys, time
count, names = int(sys.argv[1]), sys.argv[2:]
journal = sqlite3.connect("file:/var/lib/migrator/journal.db?mode=ro", uri=True)
found = "SELECT e.time, m.name, e.role, e.step, e.phase, e.detail FROM events e JOIN migrations m USING (id, role)"
rows = []
for name in names or [None]:
    where = (" WHERE m.name = ?", (name, count)) if name else ("", (count,))
    rows += journal.execute(f"{found}{where[0]} ORDER BY e.number DESC LIMIT ?", where[1]).fetchall()[::-1]
for at, name, role, step, phase, detail in rows:
    clock = time.strftime("%H:%M:%S", time.gmtime(at)) + f"{at % 1:.3f}"[1:]
    print(clock, name, role, step, phase, detail[:300])
"""
