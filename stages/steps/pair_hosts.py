# SPDX-License-Identifier: GPL-2.0-or-later
"""The work behind `migrator peer invite`, `join` and `add`: what `tunnel` offers, brought to the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import select
import shlex
import socket
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

from migrator.base import log
from migrator.base.result import Result
from migrator.base.strict_json import Malformed
from migrator.errors import UsageError
from stages.steps import arguments, peer_json
from stages.steps.peer_options import Add, Allowance, Invite, Join
from tunnel.identity import peers, private_files, tunnel_config
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peers
from tunnel.identity.tunnel_config import Config, InvalidServer, Server
from tunnel.pairing import by_channel, by_code, by_text
from tunnel.pairing.codes import Code
from tunnel.pairing.state_machine import Partner
from tunnel.tunnel_errors import PairingFailed, TunnelError

# What runs on the other host when this one pairs with it over SSH.
EXCHANGE = ["migrator", "peer", "exchange"]
SILENCE_LIMIT = 60.0  # seconds
# Seconds without a line after which a terminal has delivered a paste, most likely and for certain.
SHORT, QUIET = 0.3, 1.0
QUIET_LIMIT = 60.0  # seconds for that: a serial console takes one for every thousand characters or so


class _Pairing:
    """This host's identity and peers, and the name for the new one."""

    def __init__(self, name: str, may: Allowance, rendezvous: tuple[str, ...] = ()) -> None:
        self.name = peers.checked_name(name)
        self.identity = Identity.load(private_files.STATE / "identity")
        self.peers = Peers(private_files.STATE / "peers")
        self.servers = _servers(rendezvous)
        self.words = may.words

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.servers)

    def check(self, public: PublicIdentity) -> None:
        self.peers.check(self.name, public)

    def pin(self, partner: Partner) -> None:
        self.peers.pin(self.name, partner.public, partner.rendezvous)
        self.allow()

    def allow(self) -> None:
        """Permit it what this command line says; a command line that says nothing leaves its permissions alone."""
        if self.words:
            self.peers.allow(self.name, self.words)


# --- With a code, over a rendezvous ---------------------------------------------------------------------------


def invite(options: Invite) -> Result:
    """Raises what `by_code.invite` raises."""
    pairing = _Pairing(options.name, options.may, options.rendezvous)

    def show(code: Code, server: Server) -> None:
        # The other host looks at the first configured rendezvous first, too; it has to be told of any other.
        configured = not options.rendezvous and server == pairing.servers[0]
        where = "" if configured else f" --rendezvous {shlex.quote(server.url)}"
        command = f"migrator peer join {code} --name {_host_name() or 'NAME'}{where}"
        _print({"code": str(code), "command": command}, str(code))
        log.info(f"On the other host, within ten minutes: {command}")
        log.info("To allow containers to be moved there from here, append --allow receive.")

    asyncio.run(by_code.invite(pairing.servers, pairing.identity, show=show, check=pairing.check, pin=pairing.pin))
    return _paired(pairing)


def join(options: Join) -> Result:
    """Raises what `by_code.join` raises."""
    code = Code.parse(options.code or _asked("Code: "))
    pairing = _Pairing(options.name, options.may, options.rendezvous)
    asyncio.run(by_code.join(pairing.servers, code, pairing.identity, check=pairing.check, pin=pairing.pin))
    return _paired(pairing)


# --- By copy and paste ----------------------------------------------------------------------------------------


def offline_invite(options: Invite) -> Result:
    """Raises PairingFailed and what `Peers.pin` raises."""
    pairing = _Pairing(options.name, options.may, options.rendezvous)
    invitation = by_text.Invitation(pairing.identity, pairing.urls)
    _print({"invitation": invitation.text}, invitation.text)
    log.info("On the other host: migrator peer join --offline "
             f"--name {_host_name() or 'NAME'} -- and paste the text above there. Then paste its answer here:")
    with _nothing_pasted_left():
        partner = invitation.accept(_pasted())
        pairing.check(partner.public)
        _compare(pairing, partner)
        pairing.pin(partner)
    return _paired(pairing)


def offline_join(options: Join) -> Result:
    """Raises PairingFailed and what `Peers.pin` raises."""
    pairing = _Pairing(options.name, options.may, options.rendezvous)
    log.info("Paste the invitation:")
    with _nothing_pasted_left():
        partner, answer = by_text.answer(_pasted(), pairing.identity, pairing.urls)
        pairing.check(partner.public)
        _compare(pairing, partner)
        pairing.pin(partner)
    _print({"answer": answer}, answer)
    log.info("Paste the text above on the inviting host.")
    return _paired(pairing)


def _compare(pairing: _Pairing, partner: Partner) -> None:
    """Have the fingerprints compared if someone is there to do it; raises PairingFailed.

    The answer to type is a number made up now: a pasted text may have had further lines, written by whoever could
    tamper with it, and those must not pass for an answer.
    """
    number = f"{secrets.randbelow(10_000):04}"
    _drop_what_waits(SHORT)
    log.info(f"this host   {pairing.identity.public.fingerprint}")
    log.info(f"{pairing.name:10}  {partner.public.fingerprint}")
    if not sys.stdin.isatty():
        log.warning("The fingerprints were not compared. Compare them on both hosts before you rely on them: "
                    f"migrator peer show, migrator peer show {pairing.name}")
    elif _asked(f"Does the other host show the same two fingerprints? If it does, type {number}: ") != number:
        raise PairingFailed(reason="the fingerprints differ or were not compared")


def _pasted() -> str:
    """A text from stdin, whatever line breaks it has picked up; raises PairingFailed."""
    data = b""
    until = time.monotonic() + by_text.LIFE
    while not by_text.complete(data.decode(errors="replace")):
        # Not through sys.stdin: select() does not see what that reads ahead.
        if not select.select([0], [], [], max(0.0, until - time.monotonic()))[0]:
            raise PairingFailed(reason="nothing was pasted within an hour")
        more = os.read(0, 4096)
        if not more:
            break
        data += more
    return data.decode(errors="replace")


@contextlib.contextmanager
def _nothing_pasted_left() -> Iterator[None]:
    """What a terminal holds after a pasted text must not reach the shell afterwards, which would execute it."""
    try:
        yield
    finally:
        _drop_what_waits(QUIET)


def _drop_what_waits(quiet: float) -> None:
    """Read until a terminal has delivered nothing for `quiet` seconds: the rest of a long text comes as room permits.
    """
    if sys.stdin.isatty():
        with contextlib.suppress(termios.error):
            until = time.monotonic() + QUIET_LIMIT
            while time.monotonic() < until:
                termios.tcflush(0, termios.TCIFLUSH)
                if not select.select([0], [], [], quiet)[0]:
                    return


# --- Over SSH -------------------------------------------------------------------------------------------------


def add(options: Add) -> Result:
    """Raises what `ssh.connect` and `by_channel.pair` raise."""
    from migrator.remote import destination, ssh
    from migrator.remote.other_host import START_LIMIT
    from migrator.transfer.rpc import Connection

    target = destination.parse(options.host)
    if target.kind is destination.Kind.PEER:
        raise UsageError(reason=f"{target} goes through the tunnel; pairing over SSH needs a host that SSH can reach.")
    pairing, connect = _Pairing(options.name or target.host, options.may), options.connect
    own_name = peers.checked_name(options.own_name or _host_name())
    with ssh.connect(target, accept_new_host_key=connect.accept_new_host_key, timeout=connect.timeout) as session:
        connection = Connection(session.serve(EXCHANGE), timeout=connect.timeout)
        connection.hello(max(connect.timeout, START_LIMIT))

        def call(op: str, fields: dict[str, Any]) -> dict[str, Any]:
            answer = connection.answer(connection.request(op, fields))
            if "refused" in answer:
                raise PairingFailed(reason=f"{target} refused: {str(answer['refused'])[:500]}")
            return answer

        by_channel.pair(call, pairing.identity, pairing.peers, name=pairing.name, own_name=own_name,
                      rendezvous=pairing.urls)
        pairing.allow()
        connection.close()
    log.info(f"On {target}, to allow containers to be moved there from here: migrator peer allow {own_name} receive")
    return _paired(pairing)


def answer_exchange() -> None:
    """The other end of `add`, on stdin and stdout. Whoever may log in as root here may pair this host."""
    from migrator.transfer.rpc import Connection, Handler
    from migrator.transfer.serve_requests import serve
    from migrator.transfer.stream import FileStream

    arguments.require_root("peer exchange")
    log.level = min(log.level, log.Level.QUIET)
    identity, store = Identity.load(private_files.STATE / "identity"), Peers(private_files.STATE / "peers")
    urls = tuple(server.url for server in Config.load(tunnel_config.PATH).servers)

    def answering(handler: Handler) -> Handler:
        def answer(fields: dict[str, Any]) -> Any:
            try:
                return handler(fields)
            except (TunnelError, Malformed) as error:
                return {"refused": str(error)}
        return answer

    with Connection(FileStream.from_stdio(), timeout=SILENCE_LIMIT) as connection:
        connection.hello()
        serve(connection, {
            "identify": answering(lambda fields: by_channel.identify(identity, urls, fields)),
            "pin": answering(lambda fields: by_channel.pin(identity, store, fields)),
        })


# --- What they share ------------------------------------------------------------------------------------------


def _servers(rendezvous: tuple[str, ...]) -> tuple[Server, ...]:
    if not rendezvous:
        return Config.load(tunnel_config.PATH).servers
    try:
        return tunnel_config.parse_servers(rendezvous)
    except InvalidServer as error:
        raise UsageError(reason=f"--rendezvous {error}") from None


def _paired(pairing: _Pairing) -> Result:
    peer = pairing.peers.get(pairing.name)
    text = f"Paired with {peer.name}, whose fingerprint is {peer.public.fingerprint}."
    return Result({"peer": peer_json.of(peer)}, text)


def _print(data: dict[str, Any], text: str) -> None:
    """Print a part of the result that someone is waiting for before all of it exists."""
    if log.as_json:
        print(json.dumps(data), flush=True)
    else:
        log.show(text)


def _asked(question: str) -> str:
    if sys.stdin.isatty():
        print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _host_name() -> str:
    """This host's name without its domain, as a suggestion for the other side."""
    return socket.gethostname().partition(".")[0]
