# SPDX-License-Identifier: GPL-2.0-or-later
"""What -d takes, and what it refuses."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from migrator.errors.connection import DestinationInvalid
from migrator.remote.destination import Destination, Kind, parse

GOOD = {
    "hostb": Destination(Kind.SSH, "hostb"),
    "root@hostb": Destination(Kind.SSH, "hostb", "root"),
    "root@hostb:2222": Destination(Kind.SSH, "hostb", "root", 2222),
    "host_b.example.org:22": Destination(Kind.SSH, "host_b.example.org", None, 22),
    "10.0.3.7": Destination(Kind.SSH, "10.0.3.7"),
    "[2001:db8::1]": Destination(Kind.SSH, "2001:db8::1"),
    "admin@[fe80::1%eth0]:22": Destination(Kind.SSH, "fe80::1%eth0", "admin", 22),
    "ssh://hostb": Destination(Kind.SSH, "hostb"),
    "ssh://admin@hostb:2222/": Destination(Kind.SSH, "hostb", "admin", 2222),
    "ssh://[::1]:1": Destination(Kind.SSH, "::1", None, 1),
    "me@corp.example@hostb": Destination(Kind.SSH, "hostb", "me@corp.example"),
    "peer:attic-server": Destination(Kind.PEER, "attic-server"),
}

BAD = [
    "", "@", ":", ":22", "@hostb", "root@", "-oProxyCommand=id", "root@-oProxyCommand=id", "-l@hostb", "hostb:",
    "hostb:0", "hostb:65536", "hostb:022222", "hostb:+22", "hostb:22x", "hostb:²", "::1", "::1:22", "[::1", "::1]",
    "[::1]22", "[::1]:", "[hostb]", "[10.0.0.1]", "[::1%]", "[::1%a/b]", "ho st", "host\n", "host\x00", "hôte",
    "host/path", "ssh://", "ssh://hostb/path", "http://hostb", "SSH://hostb", "$(id)@hostb", "a b@hostb", "`id`",
    "a;b", "peer:", "peer:-x", "peer:../x", "peer:a b", "peer:" + "a" * 64, "a" * 254, "a" * 1000, "u" * 257 + "@h",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good(text: str) -> None:
    assert parse(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    with pytest.raises(DestinationInvalid) as caught:
        parse(text)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("text", GOOD)
def test_shown_as_it_could_be_given(text: str) -> None:
    assert parse(str(GOOD[text])) == GOOD[text]


@given(
    st.one_of(
        st.text(max_size=600),
        st.text("abz019@:[]%/.-_ \n", max_size=40),
        st.from_regex(r"(u@)?\[[0-9a-f:%]*\](:[0-9]*)?"),
    )
)
@example("root@hostb:22")
def test_nothing_dangerous_comes_through(text: str) -> None:
    try:
        found = parse(text)
    except DestinationInvalid:
        return
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9a-fA-F:.]+(%[A-Za-z0-9_.-]+)?", found.host)
    assert not str(found).startswith("-")
    assert found.user is None or re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*", found.user)
    assert found.port is None or 1 <= found.port <= 65535
    assert parse(str(found)) == found
