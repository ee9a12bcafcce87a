# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made wrong: the modules that the promises hang on, and in them what carries one.

The promises: never two copies, nothing lost, a failed move lets the container run on; and who is let in.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# Patterns of functions and methods; with a ! those that are left out, as they only say or ask something.
WHERE: dict[str, tuple[str, ...]] = {
    "migrator/states.py": ("*",),
    "migrator/healing.py": ("*",),
    "migrator/journal.py": ("*",),
    "migrator/layout.py": ("*",),
    "migrator/holder.py": ("*",),
    "migrator/container_config.py": ("*",),
    "migrator/known_hosts.py": ("*",),
    "migrator/names.py": ("*",),
    "migrator/segments.py": ("*",),
    "migrator/spool.py": ("*",),
    "migrator/thawing.py": ("*",),
    "stages/force.py": ("*",),
    "stages/offer.py": ("*",),
    "stages/rollback.py": ("*", "!add_arguments", "!described"),
    "stages/settling.py": ("*",),
    "tunnel/pairing.py": ("*",),
    "tunnel/seal.py": ("*",),
}
TESTS = ("tests/migrator", "tests/stages", "tests/tunnel")


def is_wanted(file: str, name: str) -> bool:
    """Whether a function (`f` or `Class.f`) is to be made wrong."""
    patterns = WHERE.get(file, ())
    if any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)
