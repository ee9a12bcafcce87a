# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator peer` and `migrator rendezvous` as programs: what they print, how they end, and that they keep secrets."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.programs import Program


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def server(hosts: tuple[Path, Path]) -> Iterator[Program]:
    """A rendezvous that both hosts have configured."""
    program = Program(hosts[0], "rendezvous", "--listen", "127.0.0.1:0", "--udp-ports", "0,0", "--json", "-v")
    url = json.loads(program.line())["url"]
    for folder in hosts:
        (folder / "tunnel.conf").write_text(f"[rendezvous]\nservers = {url}\n")
    yield program
    if program.process.is_alive():
        program.process.terminate()
    assert program.end() == 0


def migrator(folder: Path, *argv: str, status: int = 0, given: str = "") -> Program:
    program = Program(folder, *argv)
    assert program.end(given) == status, program.said
    return program


def last(program: Program) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(program.out.splitlines()[-1])
    return found


def secrets(folder: Path) -> list[str]:
    """The private keys of the host."""
    return [line.split()[1] for line in (folder / "identity").read_text().splitlines()[1:]]


def test_invite_and_join(hosts: tuple[Path, Path], server: Program) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--name", "hostb")
    code = invite.line()
    assert re.fullmatch(r"\d+-[a-z]+-[a-z]+", code)
    join = migrator(two, "peer", "join", code, "--name", "hosta", "--json")
    assert invite.end() == 0
    assert invite.out.splitlines()[1].startswith("Paired with hostb, whose fingerprint is ")
    assert f"migrator peer join {code} --name " in invite.err
    assert "--rendezvous" not in invite.err
    shown = last(migrator(one, "peer", "show", "--json"))["own"]["fingerprint"]
    assert last(join)["peer"]["fingerprint"] == shown
    assert shown in migrator(two, "peer", "list").out
    # Nothing secret in what anybody has said.
    everything = invite.said + join.said + "".join(
        migrator(folder, "peer", *words, "--debug").said
        for folder, name in ((one, "hostb"), (two, "hosta")) for words in (["list"], ["show"], ["show", name]))
    server.process.terminate()
    assert server.end() == 0
    everything += server.said
    assert not any(secret in everything for secret in secrets(one) + secrets(two))
    words = code.partition("-")[2]
    assert words not in server.said + join.said
    assert words not in migrator(one, "peer", "list", "--json").out


def test_json_prints_the_code_and_then_the_peer(hosts: tuple[Path, Path], server: Program) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--name", "hostb", "--json")
    said = json.loads(invite.line())
    assert said["command"].startswith(f"migrator peer join {said['code']} --name")
    # From standard input, the code is not even in the list of processes.
    migrator(two, "peer", "join", "--name", "hosta", given=f"{said['code']}\n")
    assert invite.end() == 0
    assert last(invite)["peer"]["name"] == "hostb"


def test_a_wrong_code_burns_it_on_both_sides(hosts: tuple[Path, Path], server: Program) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--name", "hostb", "--json")
    code = json.loads(invite.line())["code"]
    number = code.partition("-")[0]
    wrong = migrator(two, "peer", "join", f"{number}-not-those", "--name", "hosta", "--json", status=74)
    assert last(wrong)["error"]["code"] == "pairing-failed"
    assert invite.end() == 74
    again = migrator(two, "peer", "join", code, "--name", "hosta", status=74)
    assert "nobody waits" in again.err
    for folder in hosts:
        assert last(migrator(folder, "peer", "list", "--json"))["peers"] == []


def test_a_server_of_the_command_line(hosts: tuple[Path, Path], server: Program) -> None:
    one, two = hosts
    url = (one / "tunnel.conf").read_text().split()[-1]
    for folder in hosts:
        (folder / "tunnel.conf").unlink()
    nowhere = migrator(one, "peer", "invite", "--name", "hostb", status=73)
    assert "none is known" in nowhere.err
    invite = Program(one, "peer", "invite", "--name", "hostb", "--rendezvous", url, "--json")
    command = json.loads(invite.line())["command"].split()
    assert command[-1].strip("'") == url
    migrator(two, "peer", "join", command[3], "--name", "hosta", "--rendezvous", url)
    assert invite.end() == 0
    broken = migrator(one, "peer", "invite", "--name", "hostb", "--rendezvous", "http://x", status=2)
    assert "wss://" in broken.err


def test_an_interrupted_invitation_ends_at_once(hosts: tuple[Path, Path], server: Program) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--name", "hostb")
    code = invite.line()
    invite.signal(signal.SIGINT)
    assert invite.end() == 128 + signal.SIGINT  # ten minutes before its time is up
    assert "Traceback" not in invite.err
    assert "nobody waits" in migrator(two, "peer", "join", code, "--name", "hosta", status=74).err


def test_by_copy_and_paste(hosts: tuple[Path, Path]) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--offline", "--name", "hostb")
    invitation = invite.line()
    join = migrator(two, "peer", "join", "--offline", "--name", "hosta", given=invitation + "\n")
    answer = join.out.splitlines()[0]
    assert invite.end(answer + "\n") == 0
    for said in (invite, join):
        assert "were not compared" in said.err
    fingerprints = {last(migrator(folder, "peer", "show", "--json"))["own"]["fingerprint"] for folder in hosts}
    assert all(fingerprint in said.err for fingerprint in fingerprints for said in (invite, join))
    assert last(migrator(one, "peer", "list", "--json"))["peers"][0]["fingerprint"] in fingerprints
    refused = migrator(two, "peer", "join", "--offline", "--name", "x", status=74, given="nonsense\n")
    assert "damaged, or not one" in refused.err
    refused = migrator(two, "peer", "join", invitation, "--offline", "--name", "x", status=2)
    assert "do not give it as an argument" in refused.err


@pytest.mark.parametrize(("behind", "answer", "status"), [
    ("", "{number}", 0), ("\n\n", "{number}", 0), ("yes\nyes\n", "yes", 74), ("", "no", 74), ("", "", 74)])
def test_at_a_terminal_the_fingerprints_are_asked_about(hosts: tuple[Path, Path], behind: str, answer: str,
                                                        status: int) -> None:
    """Who could change what is pasted answers nothing by what he puts behind it."""
    one, two = hosts
    invite = Program(one, "peer", "invite", "--offline", "--name", "hostb")
    invitation = invite.line()
    ours, theirs = pty.openpty()
    join = Program(two, "peer", "join", "--offline", "--name", "hosta", terminal=theirs)
    os.write(ours, f"{invitation}\n{behind}".encode())
    while not (asked := re.search(r"other host show .* type ([0-9]{4}): ", join.err)) and join.process.is_alive():
        time.sleep(0.01)
    assert asked
    os.write(ours, answer.format(number=asked[1]).encode() + b"\n")
    assert join.end() == status
    os.close(theirs)
    os.close(ours)
    invite.end()
    assert len(last(migrator(two, "peer", "list", "--json"))["peers"]) == (status == 0)


def test_show_rename_remove(hosts: tuple[Path, Path]) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--offline", "--name", "hostb")
    join = migrator(two, "peer", "join", "--offline", "--name", "hosta", given=invite.line())
    assert invite.end(join.out.splitlines()[0]) == 0
    assert last(migrator(one, "peer", "show", "hostb", "--json"))["peer"]["rendezvous"] == []
    assert "now called b" in migrator(one, "peer", "rename", "hostb", "b").out
    assert last(migrator(one, "peer", "show", "hostb", "--json", status=72))["error"]["code"] == "peer-unknown"
    assert last(migrator(one, "peer", "--json", "remove", "b"))["removed"]["name"] == "b"
    assert "no peers" in migrator(one, "peer", "list").out
    for words in (["show", "../x"], ["rename", "b", "a/b"], ["invite", "--name", "-"], ["invite", "--name", ""]):
        migrator(one, "peer", *words, status=2)
    migrator(one, "peer", "invite", status=2)


def test_what_a_peer_may_do(hosts: tuple[Path, Path]) -> None:
    one, two = hosts
    invite = Program(one, "peer", "invite", "--offline", "--name", "hostb")
    join = migrator(two, "peer", "join", "--offline", "--name", "hosta", "--allow", "receive", "--lxcpath", "/pool",
                    given=invite.line())
    assert invite.end(join.out.splitlines()[0]) == 0
    nothing = {"receive": False, "lxcpaths": [], "hooks": False}

    def allowed(folder: Path, name: str) -> dict[str, Any]:
        found: dict[str, Any] = last(migrator(folder, "peer", "show", name, "--json"))["peer"]["allowed"]
        return found

    assert allowed(one, "hostb") == nothing
    assert allowed(two, "hosta") == {"receive": True, "lxcpaths": ["/pool"], "hooks": False}
    said = migrator(one, "peer", "allow", "hostb", "receive", "--lxcpath", "/a b", "--lxcpath", "/c", "--accept-hooks")
    assert said.out == "hostb may move containers to /a b, /c, with hooks.\n"
    assert allowed(one, "hostb") == {"receive": True, "lxcpaths": ["/a b", "/c"], "hooks": True}
    assert "move containers to /a b, /c, with hooks" in migrator(one, "peer", "show", "hostb").out
    assert "move containers to /pool" in migrator(two, "peer", "list").out
    # What is said replaces what was said before.
    migrator(one, "peer", "allow", "hostb", "receive")
    assert allowed(one, "hostb") == {"receive": True, "lxcpaths": [], "hooks": False}
    assert migrator(one, "peer", "allow", "hostb", "nothing").out == "hostb may do nothing.\n"
    assert allowed(one, "hostb") == nothing
    for words in (["hostb", "everything"], ["hostb"], ["hostb", "nothing", "--accept-hooks"],
                  ["hostb", "nothing", "--lxcpath", "/pool"]):
        migrator(one, "peer", "allow", *words, status=2)
    migrator(one, "peer", "allow", "hostb", "receive", "--lxcpath", "../pool", status=20)
    migrator(one, "peer", "allow", "hostc", "receive", status=72)
    assert allowed(one, "hostb") == nothing


def test_a_host_that_others_could_read_is_refused(hosts: tuple[Path, Path]) -> None:
    one, _ = hosts
    migrator(one, "peer", "show")
    (one / "identity").chmod(0o644)
    refused = migrator(one, "peer", "show", status=70)
    assert "chmod 600" in refused.err
    assert not any(secret in refused.said for secret in secrets(one))


@pytest.mark.parametrize("argv", [
    ["--listen", "127.0.0.1"], ["--listen", "example.org:443"], ["--udp-ports", "1"], ["--udp-ports", "1,99999"],
    ["--certificate", "/x"], ["--public", "example.org"], ["--relay-ports", "a,b"],
])
def test_wrong_arguments_of_the_rendezvous(hosts: tuple[Path, Path], argv: list[str]) -> None:
    migrator(hosts[0], "rendezvous", *argv, status=2)


def test_the_rendezvous_keeps_its_fingerprint(hosts: tuple[Path, Path]) -> None:
    folder = hosts[0]
    found = set()
    for _ in range(2):
        program = Program(folder, "rendezvous", "--listen", "127.0.0.1:0", "--udp-ports", "0,0", "--certificate",
                          str(folder / "c"), "--key", str(folder / "k"))
        lines = [program.line() for _ in range(6)]
        found.add(lines[1])
        assert lines[-1].startswith("servers = wss://127.0.0.1:")
        program.process.terminate()
        assert program.end() == 0
        assert program.err == ""
    assert len(found) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["c", "k"]
