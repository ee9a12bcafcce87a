# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made wrong: the modules that the promises hang on, and in them what carries one.

The promises: never two copies, nothing lost, a failed move lets the container run on; and who is let in.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

# Patterns of functions and methods; with a ! those that are left out, as they only say or ask something.
WHERE: dict[str, tuple[str, ...]] = {
    "migrator/copies/after_crash.py": ("where",),
    "migrator/copies/autostart.py": ("*",),
    "migrator/record/states.py": ("*",),
    "migrator/record/decisions.py": ("*",),
    "migrator/copies/forked.py": ("*",),
    "migrator/criu/bound_sockets.py": ("*",),
    "migrator/criu/image_messages.py": ("*",),
    "migrator/criu/socket_names.py": ("*",),
    "migrator/criu/ghost_paths.py": ("*",),
    "migrator/criu/ghosts.py": ("*",),
    "migrator/copies/resume_rules.py": ("*",),
    "migrator/record/detail.py": ("*",),
    "migrator/record/journal.py": ("*",),
    "migrator/record/journal_file.py": ("*",),
    "migrator/record/transactions.py": ("*",),
    "migrator/record/migration_paths.py": ("*",),
    "migrator/record/image_folders.py": ("*",),
    "migrator/record/lxc_disk.py": ("*",),
    "migrator/copies/late_start.py": ("*",),
    "migrator/copies/leave.py": ("*",),
    "migrator/copies/come_up.py": ("*",),
    "migrator/record/container_lock.py": ("*",),
    "migrator/config/container_config.py": ("*",),
    "migrator/remote/known_hosts.py": ("*",),
    "migrator/criu/mount_plan.py": ("*",),
    "migrator/criu/mount_sources.py": ("*",),
    "migrator/base/names.py": ("*",),
    "migrator/base/durable.py": ("*",),
    "migrator/base/process_id.py": ("start_time", "began"),
    "migrator/copies/older_journal.py": ("*",),
    "migrator/criu/own_keyring.py": ("*",),
    "migrator/transfer/segments.py": ("*",),
    "migrator/transfer/spool.py": ("*",),
    "migrator/copies/second_start.py": ("*",),
    "migrator/copies/thawing.py": ("*",),
    "stages/rollback.py": ("*", "!add_arguments", "!described"),
    "stages/steps/abandon.py": ("*",),
    "stages/steps/arguments.py": ("ending",),
    "stages/steps/earlier_stay.py": ("*",),
    "stages/steps/force.py": ("*",),
    "stages/steps/gave_way.py": ("*",),
    "stages/steps/give_back.py": ("*",),
    "stages/steps/left_running.py": ("*",),
    "stages/steps/offer.py": ("*",),
    "stages/steps/renamed.py": ("*",),
    "stages/steps/settling.py": ("*",),
    "stages/steps/stopped_here.py": ("*",),
    "stages/steps/thaw_again.py": ("*",),
    "stages/steps/two_copies.py": ("*",),
    "tunnel/pairing/state_machine.py": ("*",),
    "tunnel/identity/seal.py": ("*",),
}
# What may notice: the tests of these modules, and of what they work in. Each is run in a second, and needs no host.
# The model (tests/model) takes minutes, and goes through the same functions: what it alone would notice is to have
# its test in test_decisions.py too.
TESTS = (
    *(f"tests/migrator/base/test_{name}.py" for name in (
        "names", "removal")),
    *(f"tests/migrator/config/test_{name}.py" for name in (
        "config_added", "container_config", "linked_config")),
    *(f"tests/migrator/copies/test_{name}.py" for name in (
        "autostart", "bases", "forked", "late_start", "leave", "thawing", "watchdog", "watchdog_beside")),
    *(f"tests/migrator/criu/test_{name}.py" for name in (
        "bound_sockets", "ghost_paths", "ghosts", "image_memory", "image_messages", "mount_plan", "mount_sources",
        "own_keyring", "prepare_restore", "restore_config", "socket_names", "too_many_mounts")),
    *(f"tests/migrator/host/test_{name}.py" for name in (
        "roots", "whose_cgroup")),
    *(f"tests/migrator/record/test_{name}.py" for name in (
        "container_lock", "decisions", "detail", "durability", "image_folders", "journal", "journal_alone",
        "journal_full", "journal_read_only", "journal_steps", "lock_files", "lxc_disk", "migration_paths", "states")),
    *(f"tests/migrator/remote/test_{name}.py" for name in (
        "known_hosts",)),
    *(f"tests/migrator/transfer/test_{name}.py" for name in (
        "follower", "live_import", "resumed_transfer", "room_bounds", "sender", "spool", "spool_reads", "spool_receive",
        "transfer_given_up")),
    *(f"tests/stages/{path.name}" for path in sorted((Path(__file__).parents[1] / "stages").glob("test_*.py"))
      if path.name not in ("test_journal_filled.py", "test_peer.py")),  # which take seconds
    "tests/tunnel/identity/test_seal.py",
    "tests/tunnel/pairing/test_by_text.py",
    "tests/tunnel/pairing/test_pairing_format.py",
    "tests/tunnel/pairing/test_state_machine.py",
    "tests/tunnel/test_attacks.py",
    "tests/tunnel/test_parsers.py",
)


def is_wanted(file: str, name: str) -> bool:
    """Whether a function (`f` or `Class.f`) is to be made wrong."""
    patterns = WHERE.get(file, ())
    if any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)
