# SPDX-License-Identifier: GPL-2.0-or-later
"""What the program says refers to nothing that does not exist: documents, their headlines, man pages."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages
from migrator import manual
from tests.migrator.preflight.situations import FOUND

TREE = Path(__file__).parents[1]
SOURCES = [path for folder in ("migrator", "stages", "tunnel") for path in sorted((TREE / folder).rglob("*.py"))]

# Those of other projects. Who names another looks it up first, and adds it here.
MAN_PAGES = {
    # Linux man-pages
    "bind(2)", "bpf(2)", "capabilities(7)", "fanotify(7)", "cgroups(7)", "chroot(2)", "clock_gettime(2)", "epoll(7)",
    "execvp(3)",
    "ext4(5)",
    "fcntl_locking(2)", "fstab(5)", "getmntent(3)",
    "getrlimit(2)", "hostname(7)", "ioctl_ns(2)", "ip(7)", "ipv6(7)", "keyctl(2)", "keyrings(7)",
    "man(7)", "memfd_create(2)", "mount(2)", "path_resolution(7)", "strtok_r(3)",
    "mount_namespaces(7)", "mount_setattr(2)", "proc_pid_comm(5)",
    "name_to_handle_at(2)", "netdevice(7)", "netlink(7)", "open(2)", "open_by_handle_at(2)",
    "pidfd_getfd(2)", "pidfd_open(2)", "pivot_root(2)", "poll(2)",
    "posix_spawn(3)", "prctl(2)", "prlimit(2)", "proc(5)", "proc_locks(5)", "proc_meminfo(5)", "proc_pid_fdinfo(5)",
    "proc_pid_maps(5)",
    "proc_pid_mountinfo(5)", "proc_pid_stat(5)", "proc_pid_status(5)", "random(4)", "raw(7)", "readdir(3)", "reboot(2)",
    "renameat2(2)", "rtnetlink(3)", "signal(7)", "sock_diag(7)", "stat(2)", "statvfs(3)", "statx(2)", "symlink(7)",
    "syscalls(2)", "time_namespaces(7)", "tmpfs(5)", "udp(7)", "umount(2)", "unix(7)", "user_namespaces(7)", "vfork(2)",
    "write(2)",
    # others'
    "bash(1)", "btrfs-filesystem(8)", "btrfs-qgroup(8)", "btrfs-subvolume(8)", "criu(8)", "ip-neighbour(8)",
    "ip-xfrm(8)", "logind.conf(5)",
    "lxc-cgroup(1)", "lxc-stop(1)", "lxc.container.conf(5)", "lxc.system.conf(5)", "nft(8)", "nohup(1)", "nsenter(1)",
    "sd_notify(3)", "sshd(8)", "subuid(5)", "systemd(1)", "systemd.kill(5)", "timeout(1)", "wg(8)",
}
OWN_PAGES = {"migrator(1)", *(f"{manual.page_of(command)}(1)" for command in manual.commands())}


def strings(path: Path) -> Iterator[str]:
    """Every piece of text in a module: messages, cures, help, docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def documents(text: str) -> set[str]:
    return {name.rstrip(".") for name in re.findall(r"(?<![\w/-])(?:docs/[\w./-]+|[\w/]*README[\w.]*)", text)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TREE)))
def test_documents_and_man_pages_that_are_named_exist(path: Path) -> None:
    for text in strings(path):
        for name in documents(text):
            assert (TREE / name).exists(), text
        for page in re.findall(r"(?<![\w./-])([a-z][\w.-]*\(\d\))", text):
            assert page in MAN_PAGES | OWN_PAGES, text
        assert not re.search(r"(?<!docs/)\b(guide|handbook)\b", text, re.IGNORECASE), f"which one? {text}"


def test_a_document_that_does_not_exist_is_seen() -> None:
    assert documents("See docs/operators.md, or README.md.") == {"docs/operators.md", "README.md"}
    assert not (TREE / "docs" / "operators.md").exists()


def test_headlines_that_findings_name_exist() -> None:
    named = set()
    for _, _, changed, _ in FOUND:
        for finding in changed.find():
            named |= set(re.findall(r'"([^"]+)" in ([\w./-]+\.md)', f"{finding.message} {finding.cure}"))
    assert named
    for headline, page in named:
        assert re.search(rf"^#+ {re.escape(headline)}$", (TREE / page).read_text(), re.MULTILINE), f"{page}: {headline}"


NO_MIGRATION = {
    "moved_copy.py: status", "prologue.py: prepare-data", "resume.py: migrate", "status.py: prepare-data",
    "wait.py: migrate",
}
"""Where a command is written out that no migration stands behind: it begins one, or looks."""


def written_by_hand(source: str) -> list[str]:
    """The verbs of `migrator VERB` in front of a value that is filled in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for text, value in itertools.pairwise(parts):
            if isinstance(text, ast.Constant) and isinstance(value, ast.FormattedValue):
                found += re.findall(r"migrator ([a-z-]+) $", str(text.value))
    return [verb for verb in found if verb in stages.COMMANDS]


def test_the_commands_of_a_migration_are_advised_in_one_place() -> None:
    """`next_commands` knows the container's name on each host, and its LXC path: without -P it can be another's."""
    found = {f"{path.name}: {verb}" for path in SOURCES for verb in written_by_hand(path.read_text())}
    assert found == NO_MIGRATION


@pytest.mark.parametrize(("source", "verbs"), [
    ('f"until: migrator cleanup {migration.name}"', ["cleanup"]),
    ('f"{it} goes with: migrator"\n', []),
    ('(f"{it} goes with: migrator cleanup"\n f" {name}")', ["cleanup"]),
    ('f"{advice.command(\'cleanup\', migration)}"', []),
    ('f"migrator table {table}"', []),
])
def test_a_command_that_is_written_by_hand_is_seen(source: str, verbs: list[str]) -> None:
    assert written_by_hand(source) == verbs
