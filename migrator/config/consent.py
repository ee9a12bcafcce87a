# SPDX-License-Identifier: GPL-2.0-or-later
"""What in a configuration from elsewhere reaches out of its container, and so requires the receiving host's consent.

This lists what stays inside, not what does not (lxc.container.conf(5)): a key that is not known here, or that a later
version of LXC introduces, counts as reaching out. It is about what is written in the configuration itself; the content
of the receiving host's own included files is that host's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from migrator.config import config_reader, container_config
from migrator.host import cgroup_limits, device_filter

# What a distribution and its administrator keep for LXC on every host; files named from there are the host's own.
HOST_FOLDERS = ("/usr/share/lxc/", "/etc/lxc/")
IDS_FROM = 65536  # the first uid that no person and no service of a distribution has (systemd: UIDS-GIDS.md)
LINES_SHOWN = 5

_INSIDE = re.compile(
    r"lxc\.(arch|uts\.name|cap\.(drop|keep)|no_new_privs|group|ephemeral|log\.level|hook\.version"
    r"|apparmor\.(profile|allow_incomplete|allow_nesting)|selinux\.context|selinux\.context\.keyring"
    r"|seccomp\.allow_nesting|tty\.max|pty\.max|console\.(buffer\.size|size|rotate)"
    r"|signal\.(halt|reboot|stop)|init\.(cmd|cwd|uid|gid|groups)|execute\.cmd|autodev\.tmpfs\.size"
    r"|start\.auto|sysctl\.net\.[a-z0-9_.]+|time\.offset\.(boot|monotonic)"
    r"|prlimit\.(as|core|cpu|data|fsize|locks|memlock|msgqueue|nofile|nproc|rss|rttime|sigpending|stack)"
    r"|net\.\d+\.(flags|hwaddr|ipv[46]\.(address|gateway))"
    r"|net\.\d+\.veth\.(n_rxqueues|n_txqueues)"  # not its routes and VLANs, which are the host's
    r"|cgroup2?\.devices\.deny)"
)
# Limits on what a container may use. Not what is withheld from others for it (memory.min, a weight above theirs, see
# `favours`; cpuset.cpus.partition, cpuset.cpus.exclusive); and cgroup.procs and the like LXC would write as the host's
# root.
_LIMITS = cgroup_limits.UNSET.keys() | {"io.max", "io.weight"}
# The host's end of a veth, named as LXC does by default, and so like any container's. A rule of the host's may trust
# another name, such as that of a VPN or a network card; and the kernel replaces %d by a number (dev_alloc_name in
# net/core/dev.c).
_PAIR = re.compile(r"veth[A-Za-z0-9_.-]{0,11}")
_VIRTUAL = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "hugetlbfs"})
# Mount options that stay inside, and those that the file systems of _VIRTUAL take. LXC recognises its own by their
# beginning (parse_vfs_attr in src/lxc/conf.c): `bindx` and `rbind0` bind too, so a list of options that reach out would
# not do.
_OPTIONS = re.compile(
    r"defaults|ro|rw|a?sync|dirsync|(no|rel|strict)?atime|no(diratime|relatime|dev|exec|suid)|dev|exec|suid|optional"
    r"|newinstance|(size|mode|uid|gid|nr_inodes|nr_blocks|min_size|pagesize|max|ptmxmode|hidepid|subset)=[A-Za-z0-9%]+")
_ENTRY_MAX = 1000  # characters: LXC reads 4,095 bytes of an entry, and takes those for the whole
_NODES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "fuse"))
# null, zero, full, random, urandom, tty, console, ptmx; pts; tun, fuse (admin-guide/devices.txt)
_DEVICES = re.compile(r"c (1:[35789]|5:[012]|136:\*|10:200|10:229) [rwm]+|[abc] \*:\* m")
# Replaces device rules that let a container open any device (see `confining`): the rules of LXC's common.conf, and
# /dev/net/tun. Creating a node does no harm if it cannot be opened.
_CONFINED = ("c *:* m", "b *:* m", *(f"c {number} rwm" for number in (
    "1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*", "10:200", "10:229")))
# Not what leads a program elsewhere: HOME, a proxy, a TZ that is a path (tzset(3)), a locale that is one
# (_nl_make_l10nflist in glibc's intl/l10nflist.c).
_ENVIRONMENT = re.compile(r"(container|container_[a-z]+)=.*|(TERM|LANG|LC_[A-Z]+)=[^/]*"
                          r"|TZ=((?!.*\.\.)[A-Za-z][A-Za-z0-9_+,./-]*)?")
_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # to LXC 010 is 8 and 0x10 is 16, as for strtoul(3) with base 0
_PATH_MAX = 4096
# Bytes. A bridge takes the lowest MTU of its ports, and below this one the kernel disables IPv6 on it, along with the
# host's own addresses (IPV6_MIN_MTU; addrconf_notify in net/ipv6/addrconf.c).
_MTU_MIN = 1280


def reaching(text: str, here: Callable[[str], bool]) -> list[str]:
    """The lines of a configuration that reach out of the container. `here`: does this path exist on the receiving host?

    The lines are LXC's (`config_reader`). One that could also be read differently counts as reaching out, and so does
    anything that looks like part of our fence, which is removed from a configuration wherever it is.
    """
    found = []
    for line in config_reader.lines(text):
        plain = line.replace("\t", " ").strip(" ")
        fence = container_config.FENCE_BEGIN in plain or container_config.FENCE_END in plain
        if not plain or (plain.startswith("#") and plain.isprintable() and not fence):
            continue
        key, value = config_reader.setting(line) or ("", "?")
        # An empty value resets a setting, but for LXC an empty lxc.autodev switches it off (set_config_autodev in its
        # confile.c).
        counts = value or key == "lxc.autodev"
        if fence or not plain.isprintable() or (counts and not _inside(key, value, here)):
            found.append(plain[:_PATH_MAX])
    return found


def confining(settings: Iterable[tuple[str, str]]) -> list[str]:
    """The lines to add to a configuration with all its included files, so that nobody can open a device of the host.

    A btrfs stream can contain a node for any device, owned by someone in the container, and only these rules prevent
    opening it: a user namespace does not, because the file system is the host's. LXC's userns.conf removes those of
    common.conf. None are added if there are some that begin with `devices.deny = a`; that line alone has no effect (see
    `device_filter`).
    """
    if device_filter.denies(cgroup_limits.configured(settings)):
        return []
    return ["lxc.cgroup2.devices.deny = a", *(f"lxc.cgroup2.devices.allow = {rule}" for rule in _CONFINED)]


def shown(lines: list[str]) -> str:
    """The lines for a message; there may be many."""
    more = len(lines) - LINES_SHOWN
    return "; ".join(line[:200] for line in lines[:LINES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def may_be_asked(path: str) -> bool:
    """Whether a container that does not reach out can need this path of the host: a node, or one of LXC's files."""
    plain = ".." not in path.split("/") and len(path) <= _PATH_MAX
    return plain and (path in _NODES or path.startswith((*HOST_FOLDERS, "/var/lib/lxcfs/", "/run/lxcfs/")))


def _inside(key: str, value: str, here: Callable[[str], bool]) -> bool:
    match key:
        case "lxc.include":
            return is_hosts_own(value) and (value.endswith("/") or here(value))  # a missing directory is empty
        case "lxc.seccomp.profile":  # LXC reads it as the host's root, whatever file that is
            return is_hosts_own(value)
        case "lxc.rootfs.path":  # it is rewritten; only the kind of the old one stays
            return bool(re.fullmatch(r"((btrfs|dir):)?/[^:]*", value))
        case "lxc.idmap":
            return _maps_inside(value.split())
        # Seconds for which lxc-autostart then sleeps, and all that the host starts after it waits.
        case "lxc.start.delay":
            return bool(re.fullmatch(r"[0-5]?[0-9]|60", value))
        # Who comes first; LXC subtracts two of them in an int (cmporder in its lxc_autostart.c)
        case "lxc.start.order":
            return bool(re.fullmatch(r"-?[0-9]{1,6}", value))
        case "lxc.autodev":  # otherwise /dev is the container's own, and nodes are made wherever its symlinks lead
            return value == "1"
        case "lxc.console.path":
            return value in ("none", "auto")
        case "lxc.prlimit.rtprio" | "lxc.prlimit.nice":  # at the expense of others on the host: getrlimit(2)
            return value in ("0", "0:0")
        case "lxc.mount.auto":
            return not any(word.startswith("shmounts") for word in value.split())
        case "lxc.mount.entry":
            return len(value) <= _ENTRY_MAX and _mounts_inside(value.split())
        case "lxc.environment":  # the host's own hooks get it too
            return bool(_ENVIRONMENT.fullmatch(value))
        case "lxc.cgroup.devices.allow" | "lxc.cgroup2.devices.allow":
            return bool(_DEVICES.fullmatch(value))
    if re.fullmatch(r"lxc\.net\.\d+\.type", key):
        return value in ("veth", "empty")
    if re.fullmatch(r"lxc\.net\.\d+\.(link|name)", key):
        return config_reader.is_interface(value)
    if re.fullmatch(r"lxc\.net\.\d+\.mtu", key):
        return bool(re.fullmatch(r"[1-9][0-9]{3,4}", value)) and int(value) >= _MTU_MIN
    if re.fullmatch(r"lxc\.net\.\d+\.veth\.mode", key):
        return value == "bridge"
    if re.fullmatch(r"lxc\.net\.\d+\.veth\.pair", key):
        return bool(_PAIR.fullmatch(value))
    name = key.removeprefix("lxc.cgroup2.")
    return (name in _LIMITS and not cgroup_limits.favours(name, value)) or bool(_INSIDE.fullmatch(key))


def is_hosts_own(path: str) -> bool:
    """Whether a file is from a place where each host has its own."""
    return path.startswith(HOST_FOLDERS) and ".." not in path.split("/")


def _maps_inside(fields: list[str]) -> bool:
    """An `lxc.idmap` to host ids that nobody has, and to no others even after the kernel truncates numbers to 32 bits.
    """
    if len(fields) != 4 or fields[0] not in ("u", "g", "b") or not all(map(_ID.fullmatch, fields[1:])):
        return False
    inside, outside, count = map(int, fields[1:])
    return outside >= IDS_FROM and max(inside, outside) + count <= 1 << 32


def _mounts_inside(fields: list[str]) -> bool:
    """An fstab(5) line that mounts nothing of the host's and creates nothing there.

    LXC creates the mount point by path, as the host's root and before it has switched to the container's root file
    system: symlinks in that, or in a proc mounted earlier, can lead it anywhere. This does not apply to a directory at
    the top, or in /dev, which LXC itself has just made: it is created only if nothing is there. And the nodes have
    their usual names.
    """
    if len(fields) < 2 or ".." in fields[1].split("/"):
        return False
    source, target, *_ = fields
    options = set(fields[3].split(",")) if len(fields) > 3 else set()
    if "/" not in target.removeprefix("dev/"):
        options.discard("create=dir")
    if source in _NODES and options & {"bind", "rbind"}:
        options -= {"bind", "rbind"} | ({"create=file"} if f"/{target}" == source else set())
    elif len(fields) < 3 or fields[2] not in _VIRTUAL:
        return False
    return all(_OPTIONS.fullmatch(option) for option in options)
