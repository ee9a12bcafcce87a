# SPDX-License-Identifier: GPL-2.0-or-later
"""The store of pinned peers, and the configuration of servers."""

from __future__ import annotations

import contextlib
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import tries
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peers, checked_name
from tunnel.identity.tunnel_config import SERVERS_MAX, Config, InvalidServer, Server, parse_servers, together
from tunnel.tunnel_errors import IdentityChanged, PeerNameRefused, PeerUnknown, TunnelFileUnusable

ONE, TWO, THREE = (PublicIdentity(bytes([n]) * 32, bytes([n + 1]) * 32) for n in (1, 2, 3))
URL = "wss://rendezvous.example.org:7443#sha256:" + "0f" * 32


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    return Peers(tmp_path / "peers")


def test_pinned_peers_are_found_again(peers: Peers) -> None:
    assert peers.all() == []
    pinned = peers.pin("hostb", ONE, [URL])
    peers.pin("a", TWO)
    again = Peers(peers.path)
    assert again.get("hostb") == pinned
    assert again.by_id(ONE.id) == pinned
    assert again.by_id(THREE.id) is None
    assert [peer.name for peer in again.all()] == ["a", "hostb"]
    assert pinned.servers == (Server.parse(URL),)
    assert stat.S_IMODE(peers.path.stat().st_mode) == 0o600


def test_what_a_peer_may_do_is_kept(peers: Peers) -> None:
    """By default nothing; pairing once more, a new name and another peer change nothing of it."""
    assert peers.pin("hostb", ONE, [URL]).allowed == ()
    words = ("receive", "lxcpath=/pool", "lxcpath=/srv/a%20b%2Cc", "hooks")
    assert peers.allow("hostb", words).allowed == words
    assert Peers(peers.path).get("hostb").allowed == words
    assert peers.pin("hostb", ONE).allowed == words
    peers.pin("a", TWO)
    assert peers.rename("hostb", "b").allowed == words
    assert peers.get("a").allowed == ()
    assert peers.allow("b", ()).allowed == ()
    assert peers.get("b") == peers.by_id(ONE.id)
    # Whoever is forgotten and paired anew begins with nothing.
    peers.allow("b", words)
    peers.remove("b")
    assert peers.pin("b", ONE).allowed == ()


def test_a_line_of_before_allows_nothing(peers: Peers) -> None:
    peers.pin("hostb", ONE, [URL])
    text = peers.path.read_text()
    assert text.endswith(" -\n")
    peers.path.write_text(text.removesuffix(" -\n") + "\n")
    assert peers.get("hostb").allowed == ()
    peers.allow("hostb", ("receive",))
    assert peers.get("hostb").allowed == ("receive",)


@pytest.mark.parametrize("words", [
    ("",), ("a b",), ("a\nb",), ("a,b",), ("a=",), ("=a",), ("A",), ("a=\u00fc",), ("a",) * 33, ("a=" + "x" * 20000,),
])
def test_words_that_are_none(peers: Peers, words: tuple[str, ...]) -> None:
    peers.pin("hostb", ONE)
    before = peers.path.read_text()
    with pytest.raises(ValueError, match="cannot be written"):
        peers.allow("hostb", words)
    assert peers.path.read_text() == before
    if words[0].isprintable() and words[0] and " " not in words[0] and "," not in words[0]:
        peers.path.write_text(before.removesuffix("-\n") + ",".join(words) + "\n")
        with pytest.raises(TunnelFileUnusable, match="is malformed"):
            peers.all()


def test_a_changed_identity_is_a_hard_failure(peers: Peers) -> None:
    peers.pin("hostb", ONE, [URL])
    before = peers.path.read_text()
    for attempt in (peers.check, peers.pin):
        with pytest.raises(IdentityChanged) as caught:
            attempt("hostb", TWO)
        assert ONE.fingerprint in str(caught.value)
        assert TWO.fingerprint in str(caught.value)
        assert "peer remove hostb" in caught.value.hint
    assert peers.path.read_text() == before


def test_one_identity_has_one_name(peers: Peers) -> None:
    peers.pin("hostb", ONE)
    with pytest.raises(PeerNameRefused, match="already pinned, as hostb"):
        peers.pin("other", ONE)


def test_pinning_again_renews_where_it_is_rung(peers: Peers) -> None:
    first = peers.pin("hostb", ONE, [URL])
    assert peers.pin("hostb", ONE) == first
    again = peers.pin("hostb", ONE, ["wss://other.example.org"])
    assert again.rendezvous == ("wss://other.example.org",)
    assert again.added == first.added


def test_rename_and_remove(peers: Peers) -> None:
    peers.pin("hostb", ONE, [URL])
    peers.pin("hostc", TWO)
    assert peers.rename("hostb", "b").public == ONE
    with pytest.raises(PeerUnknown):
        peers.get("hostb")
    with pytest.raises(PeerNameRefused, match="another peer"):
        peers.rename("b", "hostc")
    assert peers.rename("b", "b").name == "b"
    peers.remove("b")
    for gone in (peers.get, peers.remove, lambda name: peers.rename(name, "x")):
        with pytest.raises(PeerUnknown, match="no peer called b"):
            gone("b")
    assert peers.by_id(ONE.id) is None
    peers.pin("b", THREE)  # after a removal the name is free


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "a\nb", "ä", "x" * 64, "a#b", "*"])
def test_names_that_are_refused(peers: Peers, name: str) -> None:
    for attempt in (checked_name, peers.get, lambda name: peers.pin(name, ONE)):
        with pytest.raises(PeerNameRefused):
            attempt(name)
    assert not peers.path.exists()


def test_many_at_once_lose_nothing(peers: Peers) -> None:
    identities = [Identity.generate().public for _ in range(12)]
    threads = [threading.Thread(target=peers.pin, args=(f"host{n}", public)) for n, public in enumerate(identities)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {peer.public for peer in peers.all()} == set(identities)


@pytest.mark.parametrize("line", [
    "hostb", f"hostb {ONE.to_text()}", f"hostb {ONE.to_text()} 1 - -more",
    f"hostb {ONE.to_text()} 1 - - more", f"a/b {ONE.to_text()} 1 -",
    f"hostb {ONE.to_text()[:-4]} 1 -", f"hostb {ONE.to_text()} nan -", f"hostb {ONE.to_text()} soon -",
    f"hostb {ONE.to_text()} inf -", f"hostb {ONE.to_text()} 1 http://x", f"hosta {ONE.to_text()} 1 -",
    f"hostc {TWO.to_text()} 1 -",
])
def test_a_damaged_line_is_refused_with_its_number(peers: Peers, line: str) -> None:
    peers.pin("hosta", TWO)
    good = peers.path.read_text()
    peers.path.write_text(f"{good}{line}\n")
    number = len(good.splitlines()) + 1
    with pytest.raises(TunnelFileUnusable, match=f"line {number}"):
        peers.all()


@settings(max_examples=tries(30, 300))
@given(st.text(max_size=300))
def test_any_file_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peers")
        path.write_bytes(text.encode(errors="surrogatepass"))
        path.chmod(0o600)
        with contextlib.suppress(TunnelFileUnusable):
            assert Peers(path).all() == []


# --- configuration ---


def test_servers() -> None:
    server = Server.parse(URL)
    assert (server.host, server.port, server.pin) == ("rendezvous.example.org", 7443, bytes.fromhex("0f" * 32))
    assert str(server) == "rendezvous.example.org:7443"
    assert str(Server.parse("wss://[2001:db8::1]")) == "[2001:db8::1]"
    assert Server.parse("wss://example.org").pin is None


@pytest.mark.parametrize(("one", "other", "same"), [
    ("wss://rv.example", "wss://rv.example/", True), ("wss://rv.example", "wss://rv.example:443", True),
    ("wss://rv.example", "WSS://RV.Example", True), ("wss://rv.example#sha256:" + "ab" * 32,
                                                     "wss://rv.example/#SHA256:" + "AB" * 32, True),
    ("wss://[2001:db8::1]", "wss://[2001:DB8:0::0001]", True), ("wss://[fe80::1%eth0]", "wss://[FE80::1%eth0]", True),
    ("wss://[fe80::1%eth0]", "wss://[fe80::1%eth1]", False), ("wss://rv.example", "wss://rv.example:444", False),
    ("wss://rv.example", "wss://rv2.example", False),
    ("wss://rv.example", "wss://rv.example#sha256:" + "ab" * 32, False),
    ("wss://rv.example#sha256:" + "ab" * 32, "wss://rv.example#sha256:" + "ac" * 32, False),
])
def test_one_server_in_two_spellings_is_one(one: str, other: str, same: bool) -> None:
    """An agent that waited at both would throw itself out, again and again."""
    assert (len(parse_servers([one, other])) == 1) is same
    ours, theirs = parse_servers([other]), [Server.parse(one).of_peer()]
    found = together(theirs, ours)
    assert (len(found) == 1) is same
    assert [each.by_peer for each in found] == ([False] if same else [True, False]), "the user's choice stays one"


BLANKS = st.text(" \t\x0b,/", max_size=2)


@pytest.mark.parametrize("url", [
    "", "ws://example.org", "https://example.org", "wss://", "wss://user:password@example.org", "wss://example.org/path",
    "wss://example.org?query", "wss://example.org:0", "wss://example.org:70000", "wss://example.org#sha256:12",
    "wss://example.org#md5:" + "0" * 32, "wss://exa mple.org", "wss://-x.org", "wss://[::1", "wss://" + "a" * 600,
    "wss://example.org\n.evil", "wss://$(id)",
    "wss://[::1],x:443", "wss://a,b[::1]:443",
    " wss://example.org", "wss://example.org ", "\twss://example.org", "wss://example.org/ ",
])
def test_servers_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidServer):
        Server.parse(url)


@given(st.text(max_size=100) | st.text(max_size=60).map(lambda rest: f"wss://{rest}")
       | st.tuples(BLANKS, BLANKS).map(lambda blanks: f"{blanks[0]}wss://a.example{blanks[1]}"))
def test_any_text_is_a_server_or_is_refused(text: str) -> None:
    try:
        server = Server.parse(text)
    except InvalidServer:
        return
    assert Server.parse(server.url) == server
    assert len(server.url.split()) == 1 and "," not in server.url, "the store of peers has several in one field"


def test_configuration(tmp_path: Path) -> None:
    path = tmp_path / "tunnel.conf"
    assert Config.load(path) == Config()
    path.write_text(f"[rendezvous]\nservers = {URL}\n  wss://b.example.org, wss://c.example.org\n   {URL}\n[x]\ny=1\n")
    assert [server.host for server in Config.load(path).servers] == [
        "rendezvous.example.org", "b.example.org", "c.example.org"]


@pytest.mark.parametrize("text", ["servers = x", "[rendezvous]\nservers = http://x", "[rendezvous\n", "\xff",
                                  "[rendezvous]\nservers = a\nservers = b"])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tunnel.conf"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TunnelFileUnusable):
        Config.load(path)


def test_too_many_servers() -> None:
    with pytest.raises(InvalidServer, match="more than"):
        parse_servers([f"wss://{n}.example.org" for n in range(SERVERS_MAX + 1)])
