# SPDX-License-Identifier: GPL-2.0-or-later
"""What the container's processes have that CRIU cannot dump."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from migrator.preflight.checks.case import Case, Check, holder, listed, size
from migrator.preflight.facts.criu_facts import BPF_MAPS
from migrator.preflight.facts.task_facts import Note
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
GHOST_LIMIT = 256 << 20  # bytes; --ghost-limit of the dump
PATH_SHOWN = 300  # characters; who makes longer ones in a container may make them without an end

# What CRIU can dump (dump_one_file in criu/files.c).
ANON_INODES = frozenset({"eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd", "bpf-map"})
BPF = frozenset({"bpf-prog", "bpf_link", "bpf-link", "btf", "bpf_iter", "bpf-token"})
# By the names in /proc/net/protocols; dump_socket in criu/sockets.c and can_dump_ipproto in criu/sk-inet.c.
SOCKETS = frozenset({
    "TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "UDPLite", "RAW", "RAWv6", "PING", "PINGv6", "UNIX",
    "UNIX-STREAM", "NETLINK", "PACKET",
})
NESTABLE = frozenset({"mnt", "net"})  # CLONE_SUBNS in criu/include/namespaces.h
SERVICE_OPTIONS = {
    "uts": "ProtectHostname=no", "ipc": "PrivateIPC=no", "user": "PrivateUsers=no", "pid": "PrivatePIDs=no",
    "cgroup": "ProtectControlGroups=yes (not private or strict)", "time": "no time namespace",
}

DROP_IN = (r"mkdir -p /etc/systemd/system/service.d && printf '[Service]\nProtectHostname=no\nPrivateUsers=no\n"
           r"PrivateIPC=no\nMemoryPressureWatch=off\n' > /etc/systemd/system/service.d/migrator.conf "
           "-- and start it anew.")

ATTACHED = define("attached-task", ERROR, """A process that was started from outside, as `lxc-attach` does, is not among
    the descendants of the container's first process: CRIU does not see it, and it would be lost.""", memory_only=True)
SESSION = define("session-outside", ERROR, """A process whose session leader is outside the container cannot be
    restored: nobody there could lead its session (dump_one_task in criu/cr-dump.c).""", memory_only=True)
ZOMBIES = define("zombie-session", ERROR, """Where both a session's leader and another process of it are zombies of the
    first process, a restore never ends: CRIU 4.2 attaches the second to a helper below the leader
    (prepare_pstree_ids in criu/pstree.c), and they wait for each other.""", memory_only=True)
CGROUP = define("outside-cgroup", ERROR, """A process in the container's namespaces but not in its cgroup is not
    stopped by the freeze: memory and disk would not be of one instant.""", memory_only=True)
FROZEN = define("cgroup-frozen", ERROR, """CRIU waits without an end for a process in a cgroup that is frozen by
    itself, as `systemctl freeze` and `docker pause` do in the container: it thaws the container's own alone
    (freeze_processes in criu/seize.c, criu#2572). It is not dumped, also where this is ignored.""", memory_only=True)
OUTSIDE_FILE = define("outside-file", ERROR, """A file that is open on a mount of the host does not exist for the
    restored process ("Can't lookup mount" in criu/files-reg.c).""", memory_only=True)
UNKNOWN_FILE = define("file-unknown", WARNING, """The kernel tells nothing of an open file without asking its file
    server, or at all: it may be a device, or have been deleted.""", memory_only=True)
TERMINAL = define("terminal-outside", ERROR, """A process has a terminal whose other end is held outside, as in an
    `lxc-attach`: the other end cannot move along (tty_verify_active_pairs in criu/tty.c).""", memory_only=True)
PIPE = define("pipe-outside", WARNING, """The other end of the pipe belongs to a process outside: after the move nothing
    comes through any more.""", memory_only=True)
UNIX = define("unix-socket-outside", ERROR, """A UNIX socket that is connected with a process of the host, for example
    through a folder bound from there, cannot be dumped ("External socket is used" in criu/sk-unix.c).""",
    memory_only=True)
NESTED = define("nested-namespace", ERROR, """CRIU dumps one UTS, IPC, PID, user, cgroup and time namespace per
    container; only mount and network namespaces may be nested (generate_ns_id in criu/namespaces.c).""",
    memory_only=True)
NESTED_OK = define("nested-mount-namespace", INFO, "CRIU dumps nested mount and network namespaces, if more slowly.",
    memory_only=True)
NS_FILE = define("namespace-file", ERROR, "An open descriptor of a namespace that is not the container's own.",
    memory_only=True)
TRACED = define("traced-task", ERROR, "A process that is being traced (strace, gdb) cannot be traced by CRIU.",
    memory_only=True)
SLEEP = define("uninterruptible-task", WARNING, """A process in uninterruptible sleep (state D) cannot be frozen until
    it wakes; if it does not, the freeze fails and the container runs on.""")
BPF_FD = define("bpf-descriptor", ERROR, """CRIU cannot dump BPF programs and links, which systemd loads for its
    services' resource control.""", memory_only=True)
BPF_MAP = define("bpf-map", ERROR, "CRIU dumps BPF maps only if it was built with libbpf (Debian's was not).",
    memory_only=True)
DESCRIPTOR = define("descriptor-kind", ERROR, "CRIU cannot dump this kind of descriptor.", memory_only=True)
SOCKET = define("socket-kind", ERROR, "CRIU cannot dump sockets of this protocol.", memory_only=True)
SOCKET_UNKNOWN = define("socket-unknown", WARNING, "The kernel did not name the protocol of a socket.",
    memory_only=True)
DEVICE = define("device-open", ERROR, """CRIU dumps open terminals, memory devices such as /dev/null and /dev/random,
    tun and autofs; the state of other devices lies in the host's kernel and hardware.""", memory_only=True)
SYMLINK = define("inotify-symlink", ERROR, """CRIU opens the watched path again to check it and follows the symbolic
    link to another inode, so it cannot find the watched one (check_open_handle in criu/fsnotify.c).""",
    memory_only=True)
WATCH_GONE = define("inotify-deleted", ERROR, "A watched file has been deleted, or something is mounted over it.",
    memory_only=True)
WATCH_UNKNOWN = define("inotify-unknown", WARNING, "The path of a watched file could not be found.", memory_only=True)
GHOST = define("deleted-file-large", ERROR, """Files that are open though deleted travel in the images, up to 256 MiB
    each (--ghost-limit).""", memory_only=True)
ASTRAY = define("deleted-file-astray", ERROR, """What is open though deleted CRIU makes again under its old name, with
    the host's root: a symbolic link on the way would lead it to files of the host, and it would take another folder of
    that name for the deleted one, and remove it (create_ghost in criu/files-reg.c). Looked for among open files and
    the folders and programs of processes; what else has such a file (a mapping, a message on its way in a UNIX socket,
    a process in a mount namespace of its own) fails the restore, and the container runs on where it was.""",
    memory_only=True)
SOCKET_ASTRAY = define("socket-astray", ERROR, """CRIU binds a UNIX socket once more by the name that was given to
    bind(2), and connects others to it by that, with root's rights: symbolic links that have come on the way since would
    lead it to other sockets, and those of /proc to what it has open itself, out of the container (criu/sk-unix.c).
    Looked for is what leads through /proc among the sockets that processes have open in the container's first mount and
    network namespace; the dump finds all others, and what leads to another socket, and the container runs on here.""",
    memory_only=True)
INCOMPLETE = define("facts-incomplete", WARNING, "There were more processes or descriptors than are looked at.",
    memory_only=True)
SYSTEMD = define("systemd-guest", WARNING, """systemd uses what CRIU cannot dump unless told not to: nested
    namespaces, BPF programs, watches on symbolic links.""", memory_only=True)
CHROOT = define("root-not-mount-root", ERROR, """The container's first process has another root folder than its mount
    namespace, which CRIU refuses ("The root task has another root than mntns").""", memory_only=True)


def origin(case: Case) -> Iterator[Finding]:
    for note in case.notes("attached"):
        yield ATTACHED.found(f"{holder(note)} was started from outside the container.",
                             f"End it, or the lxc-attach that it belongs to: kill {note.pid}")
    for note in case.notes("session-outside"):
        yield SESSION.found(f"The session of {holder(note)} is led from outside the container.",
                            f"End it: kill {note.pid} -- and start it again with setsid, or as a service.")
    for note in case.notes("zombie-session-outside"):
        yield SESSION.found(f"The session of the zombie {holder(note)} was led from outside the container.",
                            "Let its parent wait for it; if that is a first process that never does, start the "
                            "container anew.")
    for note in case.notes("zombie-session"):
        yield ZOMBIES.found(f"The zombie {holder(note)} and the leader of its session wait to be waited for.",
                            "Let the container have a first process that does so, such as tini, and start it anew.")
    for note in case.notes("outside-cgroup"):
        yield CGROUP.found(f"{holder(note)} is not in the container's cgroup, so freezing does not stop it.",
                           f"End it: kill {note.pid}")
    for path in case.container.frozen:
        long = len(path) > PATH_SHOWN
        yield FROZEN.found(f"The cgroup {path[:PATH_SHOWN]}{'...' * long} is frozen, or cannot be looked at.",
                           "Thaw it as it was frozen (systemctl thaw, docker unpause in the container), or "
                           + ("remove it." if long else f"type: echo 0 >{shlex.quote(f'{path}/cgroup.freeze')}"))
    for note in case.notes("traced"):
        yield TRACED.found(f"{note.detail} is being traced.", "Let the tracer detach.")
    for note in case.notes("uninterruptible"):
        yield SLEEP.found(f"{holder(note)} is in uninterruptible sleep.",
                          f"See what it waits for: cat /proc/{note.pid}/stack")
    if case.running and case.container.init_root != "/":
        yield CHROOT.found(f"The first process's root folder is {case.container.init_root}.",
                           "Start the container from a host whose own root is a mount point (not in a chroot).")
    if not case.container.tasks.complete:
        yield INCOMPLETE.found(f"{case.container.name} has more processes or descriptors than were looked at.")


def files(case: Case) -> Iterator[Finding]:
    for note in case.notes("outside-file"):
        yield OUTSIDE_FILE.found(f"{holder(note)} has {note.detail} open, which is a file of the host.",
                                 f"End it: kill {note.pid} -- and start it again from within the container.")
    if unknown := case.notes("file-unknown"):
        yield UNKNOWN_FILE.found(f"{holder(unknown[0])} has files open of which nothing is told here: "
                                 f"{listed([note.detail for note in unknown])}.",
                                 f"Restart {shlex.quote(unknown[0].task)} if the dump fails.")
    for note in case.notes("terminal-outside"):
        yield TERMINAL.found(
            f"{holder(note)} uses the terminal {note.detail}, whose other end is outside the container.",
            f"Leave that session, or end it: kill {note.pid}",
        )
    for note in case.notes("pipe-outside"):
        yield PIPE.found(f"{holder(note)} has the {note.detail} outside the container open.",
                         "Start it without that pipe, or let it write to a file in the container instead.")
    for note in case.notes("unix-outside"):
        yield UNIX.found(f"{holder(note)} is connected with a process of the host by the UNIX {note.detail}.",
                         f"Find its path: nsenter -t {case.container.init_pid} -n ss -xp -- and do not bind it from "
                         "the host.")
    for note in case.notes("deleted-file"):
        if note.size > GHOST_LIMIT:
            yield GHOST.found(f"{holder(note)} has the deleted file {note.detail} of {size(note.size)} open.",
                              "Let the program reopen its files (often: kill -HUP), or start it anew.")
    for note in case.notes("deleted-astray"):
        yield ASTRAY.found(f"{holder(note)} has something open that was deleted and cannot be made again, "
                           f"{note.detail}.", f"Start it anew, or end it: kill {note.pid}")
    for note in case.notes("socket-astray"):
        yield SOCKET_ASTRAY.found(f"{holder(note)} has a UNIX socket that cannot be bound once more: {note.detail}.",
                                  f"Start it anew, or end it: kill {note.pid}")


def namespaces(case: Case) -> Iterator[Finding]:
    for note in case.notes("nested-namespace"):
        if note.detail in NESTABLE:
            yield NESTED_OK.found(f"{holder(note)} has a {note.detail} namespace of its own.")
        else:
            option = SERVICE_OPTIONS.get(note.detail, "")
            yield NESTED.found(
                f"{holder(note)} has a {note.detail} namespace of its own.",
                "Start it without one" + (f"; for systemd services, {option} in a drop-in such as "
                "/etc/systemd/system/service.d/migrator.conf in the container." if option else "."),
            )
    for note in case.notes("namespace-file"):
        yield NS_FILE.found(f"{holder(note)} has {note.detail} open, a namespace of others.",
                            f"End it: kill {note.pid}")


def descriptors(case: Case) -> Iterator[Finding]:
    for note in case.notes("anon-inode"):
        if note.detail in BPF:
            yield BPF_FD.found(
                f"{holder(note)} has a {note.detail} descriptor open.",
                "Refuse the bpf call in the container: a seccomp profile with `bpf errno 1` (lxc.seccomp.profile).",
            )
        elif note.detail == "bpf-map":
            for host in case.hosts:
                if host.criu.version and BPF_MAPS not in host.criu.features:
                    yield BPF_MAP.found(f"{holder(note)} has a BPF map open, and CRIU on {host.name} lacks libbpf.",
                                        "Configure the program not to use BPF, or build CRIU with libbpf.")
        elif note.detail not in ANON_INODES:
            yield DESCRIPTOR.found(f"{holder(note)} has a descriptor of kind {note.detail} open.",
                                   "Configure the program not to use it, or stop it for the move.")
    for note in case.notes("socket"):
        if not note.detail:
            yield SOCKET_UNKNOWN.found(f"{holder(note)} has a socket of unknown protocol.")
        elif note.detail not in SOCKETS:
            go = " For Go programs: GODEBUG=multipathtcp=0." if note.detail.startswith("MPTCP") else ""
            yield SOCKET.found(f"{holder(note)} has a socket of the protocol {note.detail} open.",
                               f"Configure the program not to use it, or stop it for the move.{go}")
    for note in case.notes("device"):
        if not device_dumpable(note):
            yield DEVICE.found(f"{holder(note)} has the device {note.detail} open.",
                               "Stop the program for the move, or take the device away from the container.")


_DEVICE = re.compile(r"(char|block) (\d{1,9}):(\d{1,9}) ")


def device_dumpable(note: Note) -> bool:
    """Whether CRIU dumps this device when it is open (dump_chrdev in criu/files.c, get_tty_driver in criu/tty.c)."""
    found = _DEVICE.match(note.detail)
    if not found or found[1] != "char":
        return False
    major, minor = int(found[2]), int(found[3])
    match major:
        case 1 | 188 | 204:  # memory devices; serial lines
            return True
        case 4:  # virtual terminals
            return minor <= 63
        case 5:  # /dev/tty, /dev/console, /dev/ptmx
            return minor <= 2
        case 10:  # miscellaneous: tun and autofs
            return minor in (200, 235)
    return 136 <= major < 144


def watches(case: Case) -> Iterator[Finding]:
    for note in case.notes("watch-symlink"):
        path = shlex.quote(note.detail)
        copied = f'cp -p --remove-destination "$(readlink -f {path})" {path}'
        yield SYMLINK.found(
            f"{holder(note)} watches the symbolic link {note.detail}.",
            f"Make it a regular file in the container: {case.inside('sh', '-c', copied)} -- and restart "
            f"{shlex.quote(note.task)}." if case.is_fixed(note.detail) else
            f"Let it watch a regular file instead, or end it: kill {note.pid}",
        )
    for kind, what in (("watch-deleted", "has been deleted"), ("watch-hidden", "is hidden by a mount over it")):
        for note in case.notes(kind):
            yield WATCH_GONE.found(f"{holder(note)} watches {note.detail}, which {what}.",
                                   f"Restart {shlex.quote(note.task)}.")
    unknown = case.notes("watch-unknown")
    if unknown:
        yield WATCH_UNKNOWN.found(f"{holder(unknown[0])} watches files whose path is not known: "
                                  f"{listed([note.detail for note in unknown])}.",
                                  f"Restart {shlex.quote(unknown[0].task)} if the dump fails.")


def guests(case: Case) -> Iterator[Finding]:
    if case.container.init_name == "systemd":
        yield SYSTEMD.found(f"The first process of {case.container.name} is systemd.",
                            f"For fewer errors like those that this check names, type in the container: {DROP_IN}")


CHECKS: tuple[Check, ...] = (origin, files, namespaces, descriptors, watches, guests)
