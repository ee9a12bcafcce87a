# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made wrong: the modules that the promises hang on, and in them what carries one.

The promises: never two copies, nothing lost, a failed move lets the container run on; and who is let in.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

# Patterns of functions and methods; with a ! those that are left out, as they only say or ask something.
WHERE: dict[str, tuple[str, ...]] = {
    "migrator/aftermath.py": ("where",),
    "migrator/autostart.py": ("*",),
    "migrator/states.py": ("*",),
    "migrator/forked.py": ("*",),
    "migrator/bound_sockets.py": ("*",),
    "migrator/criu_image.py": ("*",),
    "migrator/socket_names.py": ("*",),
    "migrator/ghost_paths.py": ("*",),
    "migrator/ghosts.py": ("*",),
    "migrator/healing.py": ("*",),
    "migrator/journal.py": ("*",),
    "migrator/journal_file.py": ("*",),
    "migrator/layout.py": ("*",),
    "migrator/lxc_disk.py": ("*",),
    "migrator/late_start.py": ("*",),
    "migrator/leave.py": ("*",),
    "migrator/come_up.py": ("*",),
    "migrator/holder.py": ("*",),
    "migrator/container_config.py": ("*",),
    "migrator/known_hosts.py": ("*",),
    "migrator/mount_plan.py": ("*",),
    "migrator/mount_sources.py": ("*",),
    "migrator/names.py": ("*",),
    "migrator/older_journal.py": ("*",),
    "migrator/own_keyring.py": ("*",),
    "migrator/segments.py": ("*",),
    "migrator/spool.py": ("*",),
    "migrator/second_start.py": ("*",),
    "migrator/thawing.py": ("*",),
    "stages/abandon.py": ("*",),
    "stages/earlier_stay.py": ("*",),
    "stages/force.py": ("*",),
    "stages/gave_way.py": ("*",),
    "stages/left_running.py": ("*",),
    "stages/offer.py": ("*",),
    "stages/renamed.py": ("*",),
    "stages/rollback.py": ("*", "!add_arguments", "!described"),
    "stages/settling.py": ("*",),
    "stages/stopped_here.py": ("*",),
    "stages/two_copies.py": ("*",),
    "tunnel/pairing.py": ("*",),
    "tunnel/seal.py": ("*",),
}
# What may notice: the tests of these modules, and of what they work in. Each is run in a second, and needs no host.
# The model (test_model.py) takes minutes, and goes through the same functions: what it alone would notice is to have
# its test in test_decisions.py too.
TESTS = (
    *(f"tests/migrator/test_{name}.py" for name in (
        "autostart", "bases", "behind", "bound_sockets", "bounds", "config_added", "container_config", "decisions",
        "durability",
        "follower", "forked", "ghost_paths", "ghosts", "holder", "image_memory", "journal", "journal_alone",
        "journal_full", "journal_read_only", "journal_steps", "known_hosts", "late_start", "layout", "leave",
        "linked_config", "lock_files", "lxc_disk", "mount_plan", "mount_sources", "names", "own_keyring",
        "prepare_restore", "removal", "restore_config", "roots", "socket_names", "spool", "spool_reads",
        "spool_receive", "states", "thawing", "transfer", "watchdog", "watchdog_beside", "whose_cgroup")),
    *(f"tests/stages/{path.name}" for path in sorted((Path(__file__).parents[1] / "stages").glob("test_*.py"))
      if path.name not in ("test_journal_filled.py", "test_peer.py")),  # which take seconds
    *(f"tests/tunnel/test_{name}.py" for name in (
        "attacks", "offline", "pairing", "pairing_format", "parsers", "seal")),
)


def is_wanted(file: str, name: str) -> bool:
    """Whether a function (`f` or `Class.f`) is to be made wrong."""
    patterns = WHERE.get(file, ())
    if any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)
