# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` finds in a stock Debian guest, and which of its units it names."""

from __future__ import annotations

import pytest

from harness.rig import DESTINATION, POOL, Rig

pytestmark = pytest.mark.usefixtures("clean_hosts")


def test_each_thing_is_found_with_its_unit(rig: Rig) -> None:
    rig.guest("hosta", "deb", "systemd", unprivileged=True)
    findings = rig.migrator("hosta", "check", "-P", POOL, "deb", "-d", DESTINATION, "--json").json["findings"]
    found = {(finding["code"], word) for finding in findings for word in (
        "systemd-resolved.service", "systemd-logind.service", "redis-server.service", "console-getty.service",
        "container-getty@1.service", "/etc/localtime", "in which /var/tmp")
        if word in finding["message"]}
    assert found >= {
        ("mount-unsupported", "console-getty.service"), ("mount-unsupported", "container-getty@1.service"),
        ("mount-unreachable", "systemd-resolved.service"), ("mount-unreachable", "in which /var/tmp"),
        ("nested-namespace", "redis-server.service"), ("inotify-symlink", "/etc/localtime"),
    }
    codes = {finding["code"] for finding in findings}
    assert "include-unreadable" not in codes, "stock folders need not be there"
    assert "mount-propagation" not in codes, "such mounts are restored"
    cure = next(finding["cure"] for finding in findings if finding["code"] == "inotify-symlink")
    rig.sh("hosta", cure.partition("container: ")[2].rpartition(" -- ")[0])
    again = rig.migrator("hosta", "check", "-P", POOL, "deb", "--json").json["findings"]
    assert "inotify-symlink" not in {finding["code"] for finding in again}, "nothing had to be restarted"
