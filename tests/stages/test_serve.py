# SPDX-License-Identifier: GPL-2.0-or-later
"""How `migrator serve` learns what the other side may do: from a key's line, or a peer's."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from migrator.base import log
from migrator.errors import UsageError
from migrator.errors.connection import NotAllowed
from migrator.record import grant
from migrator.transfer.messages import AskLxcPath
from migrator.transfer.rpc import Connection
from migrator.transfer.stream import FileStream
from stages import serve
from stages.steps import arguments
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peers

HOSTA = Identity.generate().public


@pytest.mark.parametrize(("only", "caller", "receive", "ask", "hooks", "paths"), [
    ("receive", "ssh:only", True, False, False, []),
    ("receive,lxcpath=/pool,lxcpath=/srv/a%20b%2c,hooks,as=hosta", "ssh:hosta", True, False, True,
     ["/pool", "/srv/a b,"]),
    ("ask,as=hostb", "ssh:hostb", False, True, False, []),
])
def test_only(only: str, caller: str, receive: bool, ask: bool, hooks: bool, paths: list[str]) -> None:
    found = grant.of_only(only)
    assert (found.caller, found.receive, found.ask, found.hooks) == (caller, receive, ask, hooks)
    assert [str(path) for path in found.lxcpaths or ()] == paths
    assert found.restricted


@pytest.mark.parametrize("only", [
    "", "everything", "receive,", "hooks", "receive,lxcpath=pool", "receive,lxcpath=/a/../b", "receive,as=", "as=x",
    "receive,as=a,as=b", "receive,as=a b", "RECEIVE", "receive,root",
])
def test_wrong_words(only: str) -> None:
    with pytest.raises(UsageError):
        grant.of_only(only)


@pytest.mark.parametrize(("asked", "granted"), [
    ("migrator serve", True), ("sudo -n -- migrator serve", True), ("", False), ("id", False),
    ("migrator serve; id", False), ("migrator peer exchange", False), ("migrator rollback web", False),
])
def test_a_forced_command_serves_and_does_nothing_else(
    asked: str, granted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 5 192.0.2.2 22")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    options = serve.ServeOptions(only="receive")
    if granted:
        assert serve.grant_of(options).receive
    else:
        with pytest.raises(NotAllowed, match="only for `migrator serve`"):
            serve.grant_of(options)


def test_a_peer_is_looked_up_at_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.identity.private_files.STATE", tmp_path)
    peers = Peers(tmp_path / "peers")
    options = serve.ServeOptions(peer=HOSTA.id.hex())
    assert not serve.grant_of(options).ask
    peers.pin("hosta", HOSTA)
    assert not serve.grant_of(options).receive
    peers.allow("hosta", grant.words_of(receive=True, lxcpaths=["/pool"], hooks=True))
    found = serve.grant_of(options)
    assert (found.receive, found.lxcpaths, found.hooks) == (True, (Path("/pool"),), True)
    peers.remove("hosta")
    assert not serve.grant_of(options).ask
    assert serve.grant_of(serve.ServeOptions()) is grant.ROOT


def test_a_peer_is_looked_up_at_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a connection that stood when it was allowed less, or removed."""
    monkeypatch.setattr("tunnel.identity.private_files.STATE", tmp_path)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(log, "level", log.level)  # which is another one afterwards
    monkeypatch.setattr(serve, "DEFAULT_PATH", tmp_path / "journal.db")
    peers, pool = Peers(tmp_path / "peers"), tmp_path / "pool"
    peers.pin("hosta", HOSTA)
    receive = grant.words_of(receive=True, lxcpaths=[str(pool)])
    peers.allow("hosta", receive)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(FileStream, "from_stdio", lambda: FileStream(theirs.fileno(), theirs.detach()))
    answering = threading.Thread(target=serve.run, args=[serve.ServeOptions(peer=HOSTA.id.hex())])
    answering.start()
    try:
        with Connection(FileStream(ours.fileno(), ours.detach())) as connection:
            connection.hello()

            def asked() -> str:
                return connection.call(AskLxcPath(lxcpath=str(pool))).lxcpath

            assert asked() == str(pool)
            for words in ((), grant.words_of(receive=True, lxcpaths=["/elsewhere"])):
                peers.allow("hosta", words)
                with pytest.raises(NotAllowed, match="allow hosta to do that: it may"):
                    asked()
                peers.allow("hosta", receive)
                assert asked() == str(pool)
            peers.remove("hosta")
            with pytest.raises(NotAllowed, match=HOSTA.id.hex()[:16]):
                asked()
    finally:
        answering.join()
