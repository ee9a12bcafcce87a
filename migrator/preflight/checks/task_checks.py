# SPDX-License-Identifier: GPL-2.0-or-later
"""What the container's processes have that CRIU cannot dump."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from migrator.guest import localtime, sessions
from migrator.preflight.checks.case import LIVE, Case, Check, holder, listed, size
from migrator.preflight.facts.criu_facts import BPF_MAPS
from migrator.preflight.facts.task_facts import Note
from migrator.preflight.findings import Code, Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
GHOST_LIMIT = 256 << 20  # bytes; --ghost-limit of the dump
PATH_SHOWN = 300  # characters; a container may have paths of any length

# What CRIU can dump (dump_one_file in criu/files.c).
ANON_INODES = frozenset({"eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd", "bpf-map"})
BPF = frozenset({"bpf-prog", "bpf_link", "bpf-link", "btf", "bpf_iter", "bpf-token"})
# By their names in /proc/net/protocols; dump_socket in criu/sockets.c and can_dump_ipproto in criu/sk-inet.c.
SOCKETS = frozenset({
    "TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "UDPLite", "RAW", "RAWv6", "PING", "PINGv6", "UNIX",
    "UNIX-STREAM", "NETLINK", "PACKET",
})
NESTABLE = frozenset({"mnt", "net"})  # CLONE_SUBNS in criu/include/namespaces.h
SERVICE_OPTIONS = {
    "uts": "ProtectHostname=no", "ipc": "PrivateIPC=no", "user": "PrivateUsers=no", "pid": "PrivatePIDs=no",
    "cgroup": "ProtectControlGroups=yes (not private or strict)", "time": "no time namespace",
}
PREPARED = frozenset({"uts", "ipc", "user"})  # namespaces that `drop_in` keeps services from

ATTACHED = define("attached-task", ERROR, """A process that was started from outside, for example by `lxc-attach`, is
    not a descendant of the container's PID 1: CRIU does not see it, and it would be lost.""", memory_only=True)
SESSION = define("session-outside", ERROR, """A process whose session leader is outside the container cannot be
    restored: its session would have no leader there (dump_one_task in criu/cr-dump.c).""", memory_only=True)
ZOMBIES = define("zombie-session", ERROR, """If both a session leader and another process of its session are zombies
    that PID 1 has not reaped, a restore never ends: CRIU 4.2 attaches the second to a helper below the leader
    (prepare_pstree_ids in criu/pstree.c), and the two wait for each other.""", memory_only=True)
CGROUP = define("outside-cgroup", ERROR, """A process in the container's namespaces but not in its cgroup is not frozen
    with it: memory and disk would not be from the same instant.""", memory_only=True)
FROZEN = define("cgroup-frozen", ERROR, """CRIU waits forever for a process in a cgroup that is itself frozen, as
    `systemctl freeze` and `docker pause` in the container do: it thaws only the container's own cgroup
    (freeze_processes in criu/seize.c, criu#2572). The container is not dumped then, even if this is ignored.""",
    memory_only=True)
OUTSIDE_FILE = define("outside-file", ERROR, """An open file on a mount of the host does not exist for the restored
    process ("Can't lookup mount" in criu/files-reg.c). Nor does one on a mount that is gone: a session has a pipe to
    systemd-logind, which was opened in the mount namespace that logind had before it was restarted.""",
    memory_only=True)
UNKNOWN_FILE = define("file-unknown", WARNING, """The kernel says nothing about an open file without asking its file
    server, or nothing at all: it may be a device, or have been deleted.""", memory_only=True)
TERMINAL = define("terminal-outside", ERROR, """A process has a terminal whose other end is outside the container, as
    with `lxc-attach`: that end cannot move along (tty_verify_active_pairs in criu/tty.c).""", memory_only=True)
PIPE = define("pipe-outside", WARNING, """The other end of the pipe belongs to a process outside: after the move nothing
    gets through any more.""", memory_only=True)
UNIX = define("unix-socket-outside", ERROR, """A UNIX socket that is connected to a process of the host, for example
    through a folder bind-mounted from there, cannot be dumped ("External socket is used" in criu/sk-unix.c).""",
    memory_only=True)
NESTED = define("nested-namespace", ERROR, """CRIU dumps one UTS, IPC, PID, user, cgroup and time namespace per
    container; only mount and network namespaces may be nested (generate_ns_id in criu/namespaces.c).""",
    memory_only=True)
NESTED_OK = define("nested-mount-namespace", INFO, "CRIU dumps nested mount and network namespaces, but more slowly.",
    memory_only=True)
NS_FILE = define("namespace-file", ERROR, "An open descriptor refers to a namespace that is not the container's own.",
    memory_only=True)
TRACED = define("traced-task", ERROR, "A process that is being traced (strace, gdb) cannot be traced by CRIU.",
    memory_only=True)
SLEEP = define("uninterruptible-task", WARNING, """A process in uninterruptible sleep (state D) cannot be frozen until
    it wakes up; if it does not, the freeze fails and the container keeps running.""")
BPF_FD = define("bpf-descriptor", ERROR, """CRIU cannot dump BPF programs and links, which systemd loads for its
    services' resource control.""", memory_only=True)
BPF_MAP = define("bpf-map", ERROR, "CRIU dumps BPF maps only if it was built with libbpf (Debian's was not).",
    memory_only=True)
IO_URING = define("io-uring", ERROR, """CRIU cannot dump io_uring. Node.js opens one also with UV_USE_IO_URING=0, and
    does without where the kernel refuses it.""", memory_only=True)
DESCRIPTOR = define("descriptor-kind", ERROR, "CRIU cannot dump this kind of descriptor.", memory_only=True)
SOCKET = define("socket-kind", ERROR, "CRIU cannot dump sockets of this protocol.", memory_only=True)
SOCKET_UNKNOWN = define("socket-unknown", WARNING, "The kernel did not name the protocol of a socket.",
    memory_only=True)
DEVICE = define("device-open", ERROR, """CRIU dumps open terminals, memory devices such as /dev/null and /dev/random,
    tun and autofs; the state of other devices is in the host's kernel and hardware.""", memory_only=True)
SYMLINK = define("inotify-symlink", ERROR, """CRIU reopens the watched path to check it and follows the symbolic link to
    another inode, so it cannot find the watched one (check_open_handle in criu/fsnotify.c).""",
    memory_only=True)
WATCH_GONE = define("inotify-deleted", ERROR, "A watched file has been deleted, or something is mounted over it.",
    memory_only=True)
WATCH_UNKNOWN = define("inotify-unknown", WARNING, "The path of a watched file could not be found.", memory_only=True)
GHOST = define("deleted-file-large", ERROR, """Files that are open but deleted travel in the images, up to 256 MiB each
    (--ghost-limit).""", memory_only=True)
ASTRAY = define("deleted-file-astray", ERROR, """CRIU recreates what is open but deleted under its old name, as the
    host's root: a symbolic link on the way would lead it to files of the host, and it would take another folder of that
    name for the deleted one, and remove it (create_ghost in criu/files-reg.c). Open files and the folders and programs
    of processes are searched; if anything else has such a file (a mapping, a message in transit in a UNIX socket, a
    process in its own mount namespace), the restore fails, and the container keeps running where it was.""",
    memory_only=True)
SOCKET_ASTRAY = define("socket-astray", ERROR, """CRIU rebinds a UNIX socket to the name that was given to bind(2), and
    connects others to it by that name, with root's rights: symbolic links that have since appeared on the way would
    lead it to other sockets, and those of /proc to what it has open itself, outside the container (criu/sk-unix.c). The
    check looks for names that lead through /proc, among the sockets that processes have open in the container's first
    mount and network namespace; the dump finds all others, and names that lead to another socket, and the container
    keeps running here.""",
    memory_only=True)
INCOMPLETE = define("facts-incomplete", WARNING, "There were more processes, descriptors or mounts than are examined.",
    memory_only=True)
SYSTEMD = define("systemd-guest", INFO, """Unless told not to, systemd uses what CRIU cannot dump: nested namespaces,
    BPF programs, watches on symbolic links.""", memory_only=True)
RUNIT = define("runit-guest", WARNING, """runsvdir knows its services by the device and inode numbers of their folders
    (runsvdir.c of runit and busybox): if one of the two has changed, it ends the service and starts it again. A
    received disk is another device, and btrfs receive does not keep inode numbers either.""", memory_only=True)
CHROOT = define("root-not-mount-root", ERROR, """The root folder of the container's PID 1 differs from that of its mount
    namespace, which CRIU refuses ("The root task has another root than mntns").""", memory_only=True)


def origin(case: Case) -> Iterator[Finding]:
    for note in case.notes("attached"):
        yield ATTACHED.found(f"{holder(note)} was started from outside the container.",
                             f"End it, or the lxc-attach that it belongs to: kill {note.pid}")
    for note in case.notes("session-outside"):
        yield SESSION.found(f"The session leader of {holder(note)} is outside the container.",
                            f"End it: kill {note.pid} -- and start it again with setsid, or as a service.")
    for note in case.notes("zombie-session-outside"):
        yield SESSION.found(f"The session leader of the zombie {holder(note)} was outside the container.",
                            "Have its parent reap it; if that is a PID 1 that never does, restart the container.")
    for note in case.notes("zombie-session"):
        yield ZOMBIES.found(f"PID 1 has not reaped the zombie {holder(note)} and its session leader.",
                            "Give the container a PID 1 that does, such as tini, and restart it.")
    for note in case.notes("outside-cgroup"):
        yield CGROUP.found(f"{holder(note)} is not in the container's cgroup, so it would not be frozen.",
                           f"End it: kill {note.pid}")
    for path in case.container.frozen:
        long = len(path) > PATH_SHOWN
        yield FROZEN.found(f"The cgroup {path[:PATH_SHOWN]}{'...' * long} is frozen, or cannot be examined.",
                           "Thaw it the way it was frozen (systemctl thaw, docker unpause in the container), or "
                           + ("remove it." if long else f"run: echo 0 >{shlex.quote(f'{path}/cgroup.freeze')}"))
    for note in case.notes("traced"):
        yield TRACED.found(f"{note.detail} is being traced.", "Detach the tracer.")
    for note in case.notes("uninterruptible"):
        yield SLEEP.found(f"{holder(note)} is in uninterruptible sleep.",
                          f"See what it is waiting for: cat /proc/{note.pid}/stack")
    if case.running and case.container.init_root != "/":
        yield CHROOT.found(f"The root folder of PID 1 is {case.container.init_root}.",
                           "Start the container from a host whose own root is a mount point (not in a chroot).")
    if not case.container.tasks.complete:
        yield INCOMPLETE.found(f"{case.container.name} has more processes, descriptors or mounts than were examined.")


def files(case: Case) -> Iterator[Finding]:
    for note in case.notes("outside-file"):
        if case.container.init_name == "systemd" and sessions.is_pipe(note.detail):
            yield _pipe_to_logind(case, note)
            continue
        yield OUTSIDE_FILE.found(f"{holder(note)} has {note.detail} open, which is a file of the host.",
                                 f"End it: kill {note.pid} -- and start it again from within the container.")
    if unknown := case.notes("file-unknown"):
        yield UNKNOWN_FILE.found(f"{holder(unknown[0])} has files open about which nothing is known here: "
                                 f"{listed([note.detail for note in unknown])}.",
                                 f"Restart {shlex.quote(unknown[0].task)} if the dump fails.")
    for note in case.notes("terminal-outside"):
        yield TERMINAL.found(
            f"{holder(note)} uses the terminal {note.detail}, whose other end is outside the container.",
            f"Leave that session, or end it: kill {note.pid}",
        )
    for note in case.notes("pipe-outside"):
        yield PIPE.found(f"{holder(note)} has the {note.detail} outside the container open.",
                         "Start it without that pipe, or have it write to a file in the container instead.")
    for note in case.notes("unix-outside"):
        yield UNIX.found(f"{holder(note)} is connected to a process of the host by the UNIX {note.detail}.",
                         f"Find its path: nsenter -t {case.container.init_pid} -n ss -xp -- and do not bind-mount it "
                         "from the host.")
    for note in case.notes("deleted-file"):
        if note.size > GHOST_LIMIT:
            yield GHOST.found(f"{holder(note)} has the deleted file {note.detail} of {size(note.size)} open.",
                              "Have the program reopen its files (often: kill -HUP), or restart it.")
    for note in case.notes("deleted-astray"):
        yield ASTRAY.found(f"{holder(note)} has something open that was deleted and cannot be recreated, "
                           f"{note.detail}.", f"Restart it, or end it: kill {note.pid}")
    for note in case.notes("socket-astray"):
        yield SOCKET_ASTRAY.found(f"{holder(note)} has a UNIX socket that cannot be rebound: {note.detail}.",
                                  f"Restart it, or end it: kill {note.pid}")


def _pipe_to_logind(case: Case, note: Note) -> Finding:
    """A pipe by which systemd-logind knows that a session, or an inhibitor lock, still exists.

    It was opened in the mount namespace of a logind that has ended since, and nothing but a new login opens another.
    """
    end = sessions.end(note.unit)
    cure = f"Have {note.unit} restarted, which opens another: {case.prepare}"
    if end:
        cure = f"End the session, and log in again: {case.inside(*end)}"
    return OUTSIDE_FILE.found(f"{holder(note)} has {note.detail} open, a pipe to a systemd-logind that has since been "
                              "restarted.", cure, unit="" if end else case.restarted(note))


def namespaces(case: Case) -> Iterator[Finding]:
    for note in case.notes("nested-namespace"):
        if note.detail in NESTABLE:
            yield NESTED_OK.found(f"{holder(note)} has a {note.detail} namespace of its own.")
        else:
            option = SERVICE_OPTIONS.get(note.detail, "")
            unit = case.restarted(note) if note.detail in PREPARED else ""
            yield NESTED.found(
                f"{holder(note)} has a {note.detail} namespace of its own.",
                f"Have {unit} restarted without one: {case.prepare}" if unit else
                "Start it without one" + (f"; for systemd services, {option} in a drop-in such as "
                "/etc/systemd/system/service.d/migrator.conf in the container." if option else "."),
                unit=unit)
    for note in case.notes("namespace-file"):
        yield NS_FILE.found(f"{holder(note)} has {note.detail} open, which is not the container's own namespace.",
                            f"End it: kill {note.pid}")


def descriptors(case: Case) -> Iterator[Finding]:
    for note in case.notes("anon-inode"):
        if note.detail in BPF:
            yield _deniable(case, BPF_FD, f"{holder(note)} has a {note.detail} descriptor open.")
        elif note.detail == "bpf-map":
            for host in case.hosts:
                if host.criu.version and BPF_MAPS not in host.criu.features:
                    yield BPF_MAP.found(f"{holder(note)} has a BPF map open, and CRIU on {host.name} lacks libbpf.",
                                        "Configure the program not to use BPF, or build CRIU with libbpf.")
        elif note.detail == "io_uring":
            yield _deniable(case, IO_URING, f"{holder(note)} has an io_uring open.")
        elif note.detail not in ANON_INODES:
            yield DESCRIPTOR.found(f"{holder(note)} has a descriptor of kind {note.detail} open.",
                                   "Configure the program not to use it, or stop it for the move.")
    for note in case.notes("socket"):
        if not note.detail:
            yield SOCKET_UNKNOWN.found(f"{holder(note)} has a socket of unknown protocol.")
        elif note.detail not in SOCKETS:
            go = " For Go programs: GODEBUG=multipathtcp=0." if note.detail.startswith("MPTCP") else ""
            yield SOCKET.found(f"{holder(note)} has a {note.detail} socket open.",
                               f"Configure the program not to use it, or stop it for the move.{go}")
    for note in case.notes("device"):
        if not device_dumpable(note):
            yield DEVICE.found(f"{holder(note)} has the device {note.detail} open.",
                               "Stop the program for the move, or remove the device from the container.")


def _deniable(case: Case, code: Code, message: str) -> Finding:
    """For what a rule in the container's seccomp profile denies it, where that can be given one."""
    if reason := case.container.seccomp_kept:
        return code.found(message, "Configure the program not to use it, or stop it for the move. (A seccomp rule that "
                          f"denies it is not added to the profile by prepare-guest: {reason}.)")
    return code.found(message, f"Refuse it in the container, and restart that: {case.prepare} --for-good", denied=True)


_DEVICE = re.compile(r"(char|block) (\d{1,9}):(\d{1,9}) ")


def device_dumpable(note: Note) -> bool:
    """Whether CRIU dumps this device if it is open (dump_chrdev in criu/files.c, get_tty_driver in criu/tty.c)."""
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
        if note.pid == case.container.init_pid and note.detail == localtime.PATH:
            yield SYMLINK.found(f"{holder(note)} watches the symbolic link {note.detail}.", LIVE, severity=INFO)
            continue
        path, copy = shlex.quote(note.detail), shlex.quote(f"{note.detail}.copy")
        copied = f"cp -pL {path} {copy} && mv -T {copy} {path}"
        yield SYMLINK.found(
            f"{holder(note)} watches the symbolic link {note.detail}.",
            f"Rename a regular copy over it in the container: {case.inside('sh', '-c', copied)} -- and restart "
            f"{shlex.quote(note.task)}." if case.is_fixed(note.detail) else
            f"Let it watch a regular file instead, or end it: kill {note.pid}",
        )
    for kind, what in (("watch-deleted", "has been deleted"), ("watch-hidden", "is hidden by a mount over it")):
        for note in case.notes(kind):
            yield WATCH_GONE.found(f"{holder(note)} watches {note.detail}, which {what}.",
                                   f"Restart {shlex.quote(note.task)}.")
    unknown = case.notes("watch-unknown")
    if unknown:
        yield WATCH_UNKNOWN.found(f"{holder(unknown[0])} watches files whose path is unknown: "
                                  f"{listed([note.detail for note in unknown])}.",
                                  f"Restart {shlex.quote(unknown[0].task)} if the dump fails.")


def guests(case: Case) -> Iterator[Finding]:
    if case.container.init_name == "systemd":
        yield SYSTEMD.found(f"PID 1 of {case.container.name} is systemd.",
                            "See what its services have of that now: "
                            f"{case.prepare.removesuffix(' --yes')}")
    if case.container.init_name == "runsvdir":
        yield RUNIT.found(f"PID 1 of {case.container.name} is runsvdir, which restarts its services after the move: it "
                          "knows them by the device and inode numbers of their folders, which are others then.",
                          "Expect them to be restarted, or run them without runsvdir.")


CHECKS: tuple[Check, ...] = (origin, files, namespaces, descriptors, watches, guests)
