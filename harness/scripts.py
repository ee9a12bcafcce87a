# SPDX-License-Identifier: GPL-2.0-or-later
"""What a shell on a host of the rig does for `harness.rig`: list what migrator has left there, and remove it."""

# This shell's own command line contains the words that are looked for.
KILL_SERVE = r"""
for folder in /proc/[0-9]*; do
    [ "$folder" != /proc/$$ ] || continue
    case $(tr '\0' ' ' 2>/dev/null <"$folder/cmdline") in *"migrator serve"*) kill -9 "${folder#/proc/}" ;; esac
done 2>/dev/null
exit 0
"""

# The parts of a host's set-up that tests change, as they were when the host was new.
REMEMBER = "rm -rf /var/lib/rig-new; mkdir /var/lib/rig-new; cp -a /root/.ssh /var/lib/rig-new/"

# Nothing of this exists when no migration is under way, except the base snapshot that a successful migration keeps. The
# base that the record of an abandoned one names is not a leftover.
# Processes come first: as long as there is one it may still be removing the rest.
LEFTOVERS = r"""
for folder in /proc/[0-9]*; do
    name=$(cat "$folder/comm" 2>/dev/null) || continue
    words=$(tr '\0' ' ' <"$folder/cmdline" 2>/dev/null)
    case $words in
    "") continue ;; # it has ended, and waits to be reaped
    "[lxc monitor]"*) continue ;; # of a restored container
    esac
    case $name in criu* | lxc-checkpoint | migrator | btrfs) echo "process: ${folder#/proc/} $words" ;; esac
done
kept=$(ls -d /pool/.migrator/*/*.[0-9]* >/dev/null 2>&1 && python3 -c '
import json, sqlite3
journal = sqlite3.connect("/var/lib/migrator/journal.db")
for name, detail in journal.execute("SELECT name, detail FROM migrations"):
    print(*(f"/pool/.migrator/{name}/{each}" for each in json.loads(detail).get("kept", [])), sep="\\n")' 2>/dev/null)
for path in /pool/.migrator/*/*; do
    [ -e "$path" ] || continue
    case ${path##*.} in spool | images | old) kind=${path##*.} ;; *) kind=snapshot ;; esac
    ! echo "$kept" | grep -qx "$path" || continue
    echo "$kind: $path"
done
for path in /run/migrator/*; do
    case $path in */lock | */criu-facts.json) continue ;; esac; [ ! -e "$path" ] || echo "images: $path"
done
ls -d /sys/class/net/mg* 2>/dev/null | sed 's|^/sys/class/net/|interface: |'  # a veth that no restore has taken
nft list tables | sed 's/^/firewall: /'
iptables-save 2>/dev/null | grep '^-A' | sed 's/^/firewall: /'
grep migrator /proc/self/mounts | grep -v ' / ' | sed 's/^/mount: /'
find /pool /run/lxc /root /tmp -xdev -name '.*.new' -o -name 'lxc-checkpoint*' 2>/dev/null | sed 's/^/file: /'
exit 0
"""

# What may exist while there are containers, but not once all of them are gone.
REMAINS = r"""
for cgroup in /sys/fs/cgroup/lxc.*; do
    [ ! -e "$cgroup" ] || echo "cgroup: $cgroup $(cat "$cgroup/cgroup.procs" | tr '\n' ' ')"
done
ip -o link show type veth | grep -v ' eth0@' | sed 's/^[0-9]*: /interface: /; s/: <.*//'
ls /pool | sed 's/^/container: /'
exit 0
"""

PURGE = r"""
for folder in /proc/[0-9]*; do
    name=$(cat "$folder/comm" 2>/dev/null) || continue
    case $name in criu* | lxc-checkpoint | migrator | btrfs) kill -9 "${folder#/proc/}" ;; esac
done
for cgroup in /sys/fs/cgroup/lxc.payload.*; do
    [ ! -e "$cgroup" ] || echo 1 >"$cgroup/cgroup.kill"
done
for config in /pool/*/config; do
    [ -e "$config" ] || continue
    folder=${config%/config}
    timeout 60 lxc-stop -k -P /pool -n "${folder##*/}" 2>/dev/null
done
for cgroup in /sys/fs/cgroup/lxc.monitor.*; do
    # That of a restored container stays when its monitor has ended.
    timeout 60 sh -c "while grep -qs 'populated 1' $cgroup/cgroup.events; do sleep 0.01; done" ||
        echo 1 >"$cgroup/cgroup.kill"
done
for try in $(seq 100); do  # a monitor that ends holds its own for a moment
    find /sys/fs/cgroup/lxc.* -depth -type d -exec rmdir {} + 2>/dev/null
    ls -d /sys/fs/cgroup/lxc.* >/dev/null 2>&1 || break
    sleep 0.2
done
# Subvolumes have inode 256; the deepest first.
find /pool -mindepth 1 -depth -type d -inum 256 | while read -r path; do btrfs -q subvolume delete "$path"; done
umount -l /run/migrator/* 2>/dev/null
rm -rf /pool/* /pool/.migrator /run/migrator /var/lib/migrator /var/log/migrator
ip -o link show type veth | grep -v ' eth0@' | sed 's/^[0-9]*: //; s/@.*//' | while read -r link; do
    ip link delete "$link"
done
ip neigh flush all
nft flush ruleset
rm -rf /root/.ssh && cp -a /var/lib/rig-new/.ssh /root/
exit 0
"""
