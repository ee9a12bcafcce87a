# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom known_hosts vouches for."""

from __future__ import annotations

import base64
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.loopback_sshd import keygen
from migrator.remote import known_hosts
from migrator.remote.known_hosts import Entry, Verdict

KEY = b"\x00\x00\x00\x0bssh-ed25519 one"
OTHER = b"\x00\x00\x00\x0bssh-ed25519 two"


def line(hosts: str, key: bytes = KEY, marker: str = "", key_type: str = "ssh-ed25519") -> str:
    return f"{marker} {hosts} {key_type} {base64.b64encode(key).decode()} a comment\n".lstrip()


def verdict(text: str, name: str = "hostb", key: bytes = KEY) -> Verdict:
    return known_hosts.judge(known_hosts.parse(text, name), key)


@pytest.mark.parametrize("text, expected", [
    ("", Verdict.UNKNOWN),
    (line("hostb"), Verdict.KNOWN),
    (line("HOSTB"), Verdict.KNOWN),
    (line("hosta,hostb,10.0.0.1"), Verdict.KNOWN),
    (line("hostc"), Verdict.UNKNOWN),
    (line("host"), Verdict.UNKNOWN),
    (line("[hostb]:2222"), Verdict.UNKNOWN),
    (line("host*"), Verdict.KNOWN),
    (line("host?"), Verdict.KNOWN),
    (line("host??"), Verdict.UNKNOWN),
    (line("host[b]"), Verdict.UNKNOWN),
    (line("*,!hostb"), Verdict.UNKNOWN),
    (line("!hostc,*"), Verdict.KNOWN),
    (line("hostb", OTHER), Verdict.CHANGED),
    (line("hostb", OTHER) + line("hostb"), Verdict.KNOWN),
    (line("hostb", OTHER, key_type="ssh-rsa"), Verdict.CHANGED),
    (line("hostb", marker="@revoked"), Verdict.CHANGED),
    (line("hostb") + line("*", marker="@revoked"), Verdict.CHANGED),
    (line("*", OTHER, marker="@revoked"), Verdict.UNKNOWN),
    (line("*", marker="@cert-authority"), Verdict.UNKNOWN),
    ("# " + line("hostb"), Verdict.UNKNOWN),
    (line("#,hostb"), Verdict.UNKNOWN),
    (line("hostb").replace("AAAA", "AA!AA"), Verdict.UNKNOWN),
    ("hostb ssh-ed25519 !!!\nhostb\n" + line("hostb"), Verdict.KNOWN),
    ("|1|x|y ssh-ed25519 AAAA\n|1|é|é ssh-rsa AAAA\n|1| a b c\n|1|a|b|c|d k AAAA\n", Verdict.UNKNOWN),
])  # fmt: skip
def test_verdict(text: str, expected: Verdict) -> None:
    assert verdict(text) is expected


def test_ports() -> None:
    assert known_hosts.name_of("HostB", 22) == "hostb"
    assert known_hosts.name_of("HostB", 2222) == "[hostb]:2222"
    assert known_hosts.name_of("::1", 2222) == "[::1]:2222"
    assert verdict(line("[hostb]:2222"), "[hostb]:2222") is Verdict.KNOWN
    assert verdict(line("hostb"), "[hostb]:2222") is Verdict.UNKNOWN


@pytest.mark.parametrize("name", ["hostb", "[127.0.0.1]:2222"])
def test_hashed_by_ssh_keygen(tmp_path: Path, name: str) -> None:
    keygen(tmp_path / "key", "ed25519")
    kind, key = (tmp_path / "key.pub").read_text().split()[:2]
    (tmp_path / "known_hosts").write_text(f"{name} {kind} {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", tmp_path / "known_hosts"], check=True, capture_output=True)
    text = (tmp_path / "known_hosts").read_text()
    assert name not in text
    assert known_hosts.parse(text, name) == [Entry(False, kind, base64.b64decode(key))]
    assert known_hosts.parse(text, "hostc") == []


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_fingerprint_is_that_of_ssh_keygen(tmp_path: Path, kind: str) -> None:
    keygen(tmp_path / "key", kind)
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], check=True, capture_output=True, text=True)
    key = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])
    assert known_hosts.fingerprint(key) == shown.stdout.split()[1]


@pytest.mark.parametrize("hashed", [False, True])
def test_added_line_is_found_again_by_us_and_by_ssh_keygen(tmp_path: Path, hashed: bool) -> None:
    keygen(tmp_path / "key", "ed25519")
    kind, key = (tmp_path / "key.pub").read_text().split()[:2]
    path = tmp_path / "ssh" / "known_hosts"
    known_hosts.add(path, "[hostb]:2222", kind, base64.b64decode(key), hashed=hashed)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert known_hosts.entries([path], "[hostb]:2222") == [Entry(False, kind, base64.b64decode(key))]
    assert ("hostb" in path.read_text()) != hashed
    found = subprocess.run(["ssh-keygen", "-F", "[hostb]:2222", "-f", path], capture_output=True, text=True, check=True)
    assert key in found.stdout


def test_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("# mine\nhosta ssh-rsa AAAA")  # without a newline at its end
    known_hosts.add(path, "hostb", "ssh-ed25519", KEY, hashed=False)
    assert path.read_text() == f"# mine\nhosta ssh-rsa AAAA\n{line('hostb').removesuffix(' a comment' + chr(10))}\n"


def test_many_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    threads = [threading.Thread(target=known_hosts.add, args=(path, f"host{number}", "ssh-ed25519", KEY),
                                kwargs={"hashed": False}) for number in range(20)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(path.read_text().splitlines()) == 20
    assert all(verdict(path.read_text(), f"host{number}") is Verdict.KNOWN for number in range(20))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 100 + b"\n" + line("hostb").encode())
    paths = [tmp_path / "absent", tmp_path, tmp_path / "binary"]
    assert known_hosts.judge(known_hosts.entries(paths, "hostb"), KEY) is Verdict.KNOWN


words = st.sampled_from(["|1|", "@revoked", " ", "hostb", "ssh-rsa", "AAAA", "\n", "!", "*", "=", ","])


@given(st.text() | st.lists(words).map("".join))
def test_any_text(text: str) -> None:
    for entry in known_hosts.parse(text, "hostb"):
        assert isinstance(entry.key, bytes)


def test_all_files_count_and_each_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another user may write, such as a link to a device, does not fill the memory."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(line("hostb"))
    two.write_text(line("hostb", OTHER))
    paths = [tmp_path / "missing", tmp_path, one, two]
    assert [entry.key for entry in known_hosts.entries(paths, "hostb")] == [KEY, OTHER]
    monkeypatch.setattr(known_hosts, "SIZE_MAX", len(one.read_text()))
    two.write_text(line("hosta") + line("hostb", OTHER))
    assert [entry.key for entry in known_hosts.entries(paths, "hostb")] == [KEY]


def test_who_appends_at_the_same_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands at the end is looked at when the file is ours alone: it may be a line without its end."""
    path = tmp_path / "known_hosts"

    def flock(_: int, operation: int) -> None:
        assert operation == fcntl.LOCK_EX
        path.write_text("# somebody else's")

    monkeypatch.setattr(fcntl, "flock", flock)
    known_hosts.add(path, "hostb", "ssh-ed25519", KEY, hashed=False)
    assert path.read_text() == f"# somebody else's\n{line('hostb').removesuffix(' a comment' + chr(10))}\n"


# A file may grow so far; the first write beyond that is cut short, as on a full disk.
SHORT = """
import resource, signal, sys
from pathlib import Path
from migrator.remote import known_hosts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    known_hosts.add(Path(sys.argv[1]), "hostb", "ssh-ed25519", b"key", hashed=False)
except OSError as error:
    print(error)
"""


def test_a_line_that_has_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    before = "# mine\n" * 1000
    path.write_text(before)
    limit = str(len(before) + 10)
    done = subprocess.run([sys.executable, "-c", SHORT, path, limit], capture_output=True, text=True, check=True)
    assert done.stdout == "there is no space for another line\n"
    assert path.read_text() == before
