# SPDX-License-Identifier: GPL-2.0-or-later
"""The program starts on a host, for whomever. What it imports is in tests/migrator/test_imports.py; how quick that is,
`make bench` tells."""

from __future__ import annotations

from harness.rig import LXC_HOSTS, Rig


def test_help_and_version_need_no_root(rig: Rig) -> None:
    for host in LXC_HOSTS:
        for argument in ("--version", "--help"):
            rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", argument)
        outcome = rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", "status", check=False)
        assert outcome.status == 10
        assert "needs root" in outcome.stderr
