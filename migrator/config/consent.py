# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a configuration from elsewhere reaches out of its container, and so takes the receiving host's consent.

A list of what stays inside, not of what does not (lxc.container.conf(5)): a key that is not known here, or one that a
later LXC brings, reaches out. It is about what is written in the configuration itself; what the receiving host's own
files say that it includes is that host's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from migrator.config import config_reader, container_config
from migrator.host import cgroup_limits, device_filter

# What a distribution and its administrator keep for LXC on every host; what is named from there is the host's own.
HOST_FOLDERS = ("/usr/share/lxc/", "/etc/lxc/")
IDS_FROM = 65536  # the first user id that no person and no service of a distribution has (systemd: UIDS-GIDS.md)
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
# What a container may use at most. Not what is kept from others for it (memory.min, a weight above theirs, see
# `favours`; cpuset.cpus.partition, cpuset.cpus.exclusive); and to cgroup.procs and its like LXC would write as the
# host's root.
_LIMITS = cgroup_limits.UNSET.keys() | {"io.max", "io.weight"}
# The host's end of a veth: named as LXC does it by itself, and so as any container's. A rule of the host's may trust
# another name, such as a VPN's or a card's; of %d the kernel makes a number (dev_alloc_name in net/core/dev.c).
_PAIR = re.compile(r"veth[A-Za-z0-9_.-]{0,11}")
_VIRTUAL = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "ramfs", "hugetlbfs"})
# Options of a mount that leave it inside, and what the file systems of _VIRTUAL take. LXC knows its own by how they
# begin (parse_vfs_attr in src/lxc/conf.c): `bindx` and `rbind0` bind, too, so that no list of those that do would do.
_OPTIONS = re.compile(
    r"defaults|ro|rw|a?sync|dirsync|(no|rel|strict)?atime|no(diratime|relatime|dev|exec|suid)|dev|exec|suid|optional"
    r"|newinstance|(size|mode|uid|gid|nr_inodes|nr_blocks|min_size|pagesize|max|ptmxmode|hidepid|subset)=[A-Za-z0-9%]+")
_ENTRY_MAX = 1000  # characters: LXC reads 4,095 bytes of an entry, and takes what it has then for the whole
_NODES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "fuse"))
# null, zero, full, random, urandom, tty, console, ptmx; pts; tun, fuse (admin-guide/devices.txt)
_DEVICES = re.compile(r"c (1:[35789]|5:[012]|136:\*|10:200|10:229) [rwm]+|[abc] \*:\* m")
# What takes the place of rules for devices that let a container open any (see `confining`): those of LXC's common.conf,
# and /dev/net/tun. To make a node is no harm where it cannot be opened.
_CONFINED = ("c *:* m", "b *:* m", *(f"c {number} rwm" for number in (
    "1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*", "10:200", "10:229")))
# Not what leads a program elsewhere: HOME, a proxy, a TZ that is a path (tzset(3)), a locale that is one
# (_nl_make_l10nflist in glibc's intl/l10nflist.c).
_ENVIRONMENT = re.compile(r"(container|container_[a-z]+)=.*|(TERM|LANG|LC_[A-Z]+)=[^/]*"
                          r"|TZ=((?!.*\.\.)[A-Za-z][A-Za-z0-9_+,./-]*)?")
_ID = re.compile(r"0|[1-9][0-9]{0,9}")  # to LXC 010 is 8, and 0x10 is 16, as to strtoul(3) with base 0
_PATH_MAX = 4096
# Bytes. A bridge takes the least MTU of its ports, and below this one the kernel takes IPv6 away from it, with the
# host's own addresses (IPV6_MIN_MTU; addrconf_notify in net/ipv6/addrconf.c).
_MTU_MIN = 1280


def reaching(text: str, here: Callable[[str], bool]) -> list[str]:
    """The lines of a configuration that reach out of the container. `here`: does the receiving host have this path?

    The lines are LXC's (`config_reader`); one that could be read in another way than that reaches out, too, and so does
    what looks like a part of our fence, which is taken out of a configuration wherever it stands.
    """
    found = []
    for line in config_reader.lines(text):
        plain = line.replace("\t", " ").strip(" ")
        fence = container_config.FENCE_BEGIN in plain or container_config.FENCE_END in plain
        if not plain or (plain.startswith("#") and plain.isprintable() and not fence):
            continue
        key, value = config_reader.setting(line) or ("", "?")
        # An empty value takes a setting back, but LXC takes /dev away by one (set_config_autodev in its confile.c).
        counts = value or key == "lxc.autodev"
        if fence or not plain.isprintable() or (counts and not _inside(key, value, here)):
            found.append(plain[:_PATH_MAX])
    return found


def confining(settings: Iterable[tuple[str, str]]) -> list[str]:
    """The lines to add to a configuration, with all that it includes, so that it lets nobody open a host's device.

    A stream of btrfs can have a node of any device, with an owner in the container, and only these rules keep it from
    being opened: a user namespace does not, as the file system is the host's. LXC's userns.conf takes away those of
    common.conf. None are added where there are some that begin with `devices.deny = a`; that line alone has no effect
    (see `device_filter`).
    """
    if device_filter.denies(cgroup_limits.configured(settings)):
        return []
    return ["lxc.cgroup2.devices.deny = a", *(f"lxc.cgroup2.devices.allow = {rule}" for rule in _CONFINED)]


def shown(lines: list[str]) -> str:
    """The lines for a message, of which there may be many."""
    more = len(lines) - LINES_SHOWN
    return "; ".join(line[:200] for line in lines[:LINES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def may_be_asked(path: str) -> bool:
    """Whether a container that reaches out nowhere can need this path of the host: a node or one of LXC's files."""
    plain = ".." not in path.split("/") and len(path) <= _PATH_MAX
    return plain and (path in _NODES or path.startswith((*HOST_FOLDERS, "/var/lib/lxcfs/", "/run/lxcfs/")))


def _inside(key: str, value: str, here: Callable[[str], bool]) -> bool:
    match key:
        case "lxc.include":
            return is_hosts_own(value) and (value.endswith("/") or here(value))  # a folder that is missing is empty
        case "lxc.seccomp.profile":  # LXC reads it as the host's root, whatever file that is
            return is_hosts_own(value)
        case "lxc.rootfs.path":  # is written anew; of the old one its kind stays
            return bool(re.fullmatch(r"((btrfs|dir):)?/[^:]*", value))
        case "lxc.idmap":
            return _maps_inside(value.split())
        case "lxc.start.delay":  # seconds for which lxc-autostart sleeps then, and all that the host starts behind it
            return bool(re.fullmatch(r"[0-5]?[0-9]|60", value))
        case "lxc.start.order":  # who is first; two of them LXC subtracts in an int (cmporder in its lxc_autostart.c)
            return bool(re.fullmatch(r"-?[0-9]{1,6}", value))
        case "lxc.autodev":  # else /dev is the container's own, and what is made in there wherever its links lead
            return value == "1"
        case "lxc.console.path":
            return value in ("none", "auto")
        case "lxc.prlimit.rtprio" | "lxc.prlimit.nice":  # above others of the host: getrlimit(2)
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
    """Whether a file is from where each host has its own."""
    return path.startswith(HOST_FOLDERS) and ".." not in path.split("/")


def _maps_inside(fields: list[str]) -> bool:
    """An `lxc.idmap` to ids of the host that nobody has, and to no others as the kernel cuts numbers to 32 bits."""
    if len(fields) != 4 or fields[0] not in ("u", "g", "b") or not all(map(_ID.fullmatch, fields[1:])):
        return False
    inside, outside, count = map(int, fields[1:])
    return outside >= IDS_FROM and max(inside, outside) + count <= 1 << 32


def _mounts_inside(fields: list[str]) -> bool:
    """An fstab(5) line that mounts nothing of the host's, and makes nothing there.

    What it mounts on LXC makes by its path, as the host's root and before the container's root file system is all that
    there is: links in that, or in a proc that was mounted before, lead it anywhere. Not so a folder at the top, or in
    /dev, which LXC itself has just made: it is made only where nothing is. And the nodes have their usual names.
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
