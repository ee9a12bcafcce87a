# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is logged in, by the cgroups of processes."""

from __future__ import annotations

import pytest

from migrator.guest import sessions

CGROUPS = {
    5: "0::/lxc.payload.c1/user.slice/user-0.slice/session-c1.scope\n",
    6: "0::/lxc.payload.c1/user.slice/user-0.slice/session-c1.scope\n",
    7: "0::/lxc.payload.c1/user.slice/user-0.slice/session-2.scope\n",
    8: "0::/lxc.payload.c1/user.slice/user-0.slice/user@0.service/init.scope\n",
    9: "0::/lxc.payload.c1/system.slice/ssh.service\n",
}
NAMES = {5: "login", 6: "bash", 7: "sshd-session"}


@pytest.mark.parametrize(("unit", "command"), [
    ("session-c1.scope", "terminate-session c1"), ("user@1000.service", "terminate-user 1000"),
    ("redis-server.service", ""), ("user@x.service", ""), ("", ""),
])
def test_the_command_that_ends_it(unit: str, command: str) -> None:
    assert sessions.end(unit) == (["loginctl", *command.split()] if command else [])


@pytest.mark.parametrize(("path", "is_one"), [
    ("/c1.ref", True), ("/12.ref", True), ("/run/systemd/sessions/c1.ref", False), ("/c1.ref.old", False),
    ("/.ref", False),
])
def test_its_pipe_where_the_mount_is_gone(path: str, is_one: bool) -> None:
    assert sessions.is_pipe(path) is is_one


def test_sessions_and_what_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: str) -> str:
        _, _, pid, name = path.split("/")
        return CGROUPS[int(pid)] if name == "cgroup" else f"{NAMES[int(pid)]}\n"

    monkeypatch.setattr(sessions, "read_text", read)
    found = sessions.found([9, 8, 7, 6, 5])
    assert [(each.scope, each.pid, each.task) for each in found] == [
        ("session-c1.scope", 5, "login"), ("session-2.scope", 7, "sshd-session")]
    assert found[0].shown == "session-c1.scope ('login', process 5)"
    assert [each.ends_with(["container-getty@1.service"]) for each in found] == [True, False]
    assert [each.ends_with(["systemd-logind.service", "redis-server.service"]) for each in found] == [False, False]
