# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that reads bytes from the wire, each as a function that must take any bytes without a surprise.

An error that the parser documents is caught here; whatever else comes out is a finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.candidates import reflection
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peers
from tunnel.identity.seal import Opener
from tunnel.identity.tunnel_config import InvalidServer, Server
from tunnel.pairing import by_text, state_machine
from tunnel.pairing.by_channel import identify
from tunnel.pairing.by_channel import pin as exchange_pin
from tunnel.pairing.codes import Code
from tunnel.pairing.state_machine import Pairing, Side
from tunnel.punching import probes
from tunnel.relay import relay_messages
from tunnel.rendezvous.limits import Limits
from tunnel.rendezvous.server import SignallingServer
from tunnel.session import offers
from tunnel.signalling import link
from tunnel.signalling.client import Signalling
from tunnel.tunnel_errors import OfferRejected, PairingFailed, TunnelError

Target = Callable[[bytes], None]
SMALL = 64 * 1024


@cache
def _identities() -> tuple[Identity, Identity]:
    return Identity.generate(), Identity.generate()


@cache
def _server() -> SignallingServer:
    from tunnel.rendezvous.certificate import Certificate

    return SignallingServer(Certificate.load(None, None), Limits(), [], None, "", lambda _: None)


class _Line:
    address, name, id = "192.0.2.1", "0" * 16, bytes(32)


def _json(data: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(Malformed):
        return strict_json.load(data, SMALL)
    return None


def json_object(data: bytes) -> None:
    found = _json(data)
    if found is not None:
        for key in found:
            for read in (lambda k: strict_json.text(found, k, 99), lambda k: strict_json.data(found, k, 99),
                         lambda k: strict_json.number(found, k, 0, 1), lambda k: strict_json.integer(found, k, 0, 9),
                         lambda k: strict_json.items(found, k, 9), lambda k: strict_json.exactly(found, k, 32)):
                with contextlib.suppress(Malformed):
                    read(key)


def public_identity(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        PublicIdentity.from_text(data.decode("latin-1"))


def server_url(data: bytes) -> None:
    with contextlib.suppress(InvalidServer):
        Server.parse(data.decode("latin-1"))


def code(data: bytes) -> None:
    with contextlib.suppress(PairingFailed):
        Code.parse(data.decode("utf-8", "replace"))


def sealed_offer(data: bytes) -> None:
    me, peer = _identities()
    with contextlib.suppress(OfferRejected):
        Opener(me, peer.public).open(data)


def offer_body(data: bytes) -> None:
    """What a paired peer may have put inside of the seal."""
    body = _json(data)
    if body is None:
        return
    for read in (offers.type_of, lambda b: offers.read_side(b, ()), lambda b: offers.read_keys(b, bytes(32)),
                 offers.read_attempt):
        with contextlib.suppress(Malformed):
            read(body)


def pairing_note(data: bytes) -> None:
    for side in Side:
        machine = Pairing(side, Code("7", "velvet-harbor"), _identities()[0], (), 0.0)
        with contextlib.suppress(PairingFailed):
            machine.receive(data, 1.0)


def rendezvous_list(data: bytes) -> None:
    body = _json(data)
    if body is not None:
        with contextlib.suppress(Malformed):
            state_machine.checked_rendezvous(body)


def offline_text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    by_text.complete(text)
    with contextlib.suppress(PairingFailed):
        by_text.answer(text, _identities()[0], ())
    with contextlib.suppress(PairingFailed):
        by_text.Invitation(_identities()[0], ()).accept(text)


def exchange_fields(data: bytes) -> None:
    body = _json(data)
    if body is not None:
        with contextlib.suppress(Malformed):
            identify(_identities()[0], (), body)
        with contextlib.suppress(Malformed, TunnelError):
            exchange_pin(_identities()[0], Peers(Path("/proc/nowhere/peers")), body)


def message_to_server(data: bytes) -> None:
    body = _json(data)
    if body is not None:
        with contextlib.suppress(Malformed):
            _server()._answer(_Line(), body)  # type: ignore[arg-type]
        with contextlib.suppress(Malformed):
            _server()._presented(body, bytes(32))


def message_from_server(data: bytes) -> None:
    body = _json(data)
    if body is not None:
        with contextlib.suppress(Malformed):
            link._reflector(body, "192.0.2.1")
        made = Signalling.__new__(Signalling)
        made._answers = {}
        made._inbox = _Inbox()  # type: ignore[assignment]
        made._ended = None
        made._link = _Link()  # type: ignore[assignment]
        made._take(body)


class _Link:
    server = "192.0.2.1"


class _Inbox:
    def qsize(self) -> int:
        return 0

    def put_nowait(self, _: object) -> None:
        """Takes everything."""


def reflection_datagram(data: bytes) -> None:
    reflection.asked(data)
    reflection.answered(data)


def relay_datagram(data: bytes) -> None:
    relay_messages.parse_join(data)
    relay_messages.parse_answer(data, bytes(32))
    # With a good MAC, as from a relay that is broken.
    relay_messages.parse_answer(relay_messages._sealed(bytes(32), data), bytes(32))
    relay_messages.frames(data)


def probe_datagram(data: bytes) -> None:
    probes.parse(bytes(32), data)


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (
        json_object, public_identity, server_url, code, sealed_offer, offer_body, pairing_note, rendezvous_list,
        offline_text, exchange_fields, message_to_server, message_from_server, reflection_datagram, relay_datagram,
        probe_datagram,
    )
}
