# SPDX-License-Identifier: GPL-2.0-or-later
"""Pair with other hosts, and show, rename or remove the peers of this host.

Pairing is done once. `migrator peer invite --name HOSTB` prints a code and waits; on the other host
`migrator peer join CODE --name HOSTA` completes it. NAME is what this host will call the other. Both then know each
other's identity. `--allow receive`, or later `migrator peer allow HOSTA receive`, lets the other host move containers
here with `-d peer:NAME`, through NAT if need be. By default it may do nothing.

Receiving is trusting: the memory of a container is code that runs here. What in its configuration reaches outside it
(hooks, mounts, devices) comes along only with `--accept-hooks`.

A code can be tried once, within ten minutes. Without any server, `--offline` pairs by copy and paste; if SSH works,
`migrator peer add root@host` needs nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from migrator.base.figures import table
from migrator.base.result import Result
from migrator.errors import UsageError
from migrator.record import grant
from migrator.remote.destination import ConnectOptions
from stages.steps import arguments, peer_json
from stages.steps.peer_options import (
    Add,
    Allow,
    Allowance,
    Exchange,
    Invite,
    Join,
    List,
    PeerOptions,
    Remove,
    Rename,
    Show,
)

if TYPE_CHECKING:
    from tunnel.identity.peers import Peers

NAME = "peer"
HELP = "pair with hosts behind NAT; show, rename and remove them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True, dest="action",
                                    help="invite, join, add, allow, list, show, rename, remove")

    parser.set_defaults(allow=[], lxcpath=[], accept_hooks=False)  # for actions that have none of these

    invite = _action(actions, "invite", "print a one-time code for the other host, and wait for it")
    _add_pairing(invite, required=True)
    join = _action(actions, "join", "pair with the host that has printed a code")
    join.add_argument("code", metavar="CODE", nargs="?", default=None,
                      help="the code, such as 7-velvet-harbor; read from standard input if left out")
    _add_pairing(join, required=True)
    add = _action(actions, "add", "pair over SSH")
    add.add_argument("host", metavar="[USER@]HOST[:PORT]", help="the other host, as ssh takes it")
    add.add_argument("--name", metavar="NAME", default=None, help="what this host will call the other (default: HOST)")
    add.add_argument("--as", metavar="NAME", dest="own_name", default=None,
                     help="what the other will call this host (default: its host name)")
    add.add_argument("--accept-new-host-key", action="store_true", default=False,
                     help="trust the SSH key of a host that is not yet in known_hosts, and add it")
    add.add_argument("--timeout", metavar="SECONDS", type=arguments.positive, default=30.0,
                     help="drop the connection after SECONDS of silence (default: %(default)g)")
    _add_allow(add)
    allow = _action(actions, "allow", "set what a peer may do here")
    allow.add_argument("name", metavar="NAME", help="the peer")
    allow.add_argument("what", metavar="WHAT", choices=("receive", "nothing"),
                       help="receive: it may move containers here; nothing: it may not")
    _add_where(allow)

    _action(actions, "list", "list the hosts that this one is paired with")
    show = _action(actions, "show", "show a peer's identity, or this host's own")
    show.add_argument("name", metavar="NAME", nargs="?", default=None, help="the peer (default: this host itself)")
    rename = _action(actions, "rename", "rename a peer")
    rename.add_argument("name", metavar="NAME", help="the peer")
    rename.add_argument("new_name", metavar="NEW", help="its new name")
    remove = _action(actions, "remove", "forget a peer: it is no longer answered")
    remove.add_argument("name", metavar="NAME", help="the peer")
    _action(actions, "exchange", "answer another host's `peer add` (which starts this over SSH)")


def _action(actions: Any, name: str, help_: str) -> argparse.ArgumentParser:
    # SUPPRESS, because --json and the like may also come before the action.
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", epilog=arguments.STATUSES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )
    arguments.add_common(parser)
    return parser


def _add_pairing(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--name", metavar="NAME", required=required, help="what this host will call the other")
    parser.add_argument("--rendezvous", metavar="URL", action="append", default=[],
                        help="wss://HOST[:PORT][#sha256:HEX], instead of those in /etc/migrator/tunnel.conf "
                             "(can be repeated)")
    parser.add_argument("--offline", action="store_true", default=False,
                        help="without a server: two texts, exchanged by copy and paste")


    _add_allow(parser)


def _add_allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow", metavar="WHAT", action="append", choices=("receive",), default=[],
                        help="receive: that host may move containers here (default: it may not)")
    _add_where(parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lxcpath", metavar="PATH", action="append", default=[],
                        help="where it may move them to (can be repeated; default: this host's LXC path)")
    parser.add_argument("--accept-hooks", action="store_true", default=False,
                        help="with what in their configuration reaches outside them: hooks, mounts, devices, includes")


def options(args: argparse.Namespace) -> PeerOptions:
    """Raises UsageError."""
    may = Allowance("receive" in args.allow, tuple(args.lxcpath), args.accept_hooks)
    match args.action:
        case "invite":
            return Invite(args.name, tuple(args.rendezvous), args.offline, may)
        case "join":
            if args.offline and args.code:
                raise UsageError(reason="With --offline there is no code; paste the invitation, do not give it as an "
                                        "argument.")
            return Join(args.name, tuple(args.rendezvous), args.offline, may, args.code or "")
        case "add":
            connect = ConnectOptions(timeout=args.timeout, accept_new_host_key=args.accept_new_host_key)
            return Add(args.host, args.name or "", args.own_name or "", connect, may)
        case "allow":
            may = dataclasses.replace(may, receive=args.what == "receive")
            if not may.receive and (may.lxcpaths or may.hooks):
                raise UsageError(reason="--lxcpath and --accept-hooks are only for receive")
            return Allow(args.name, may)
        case "list":
            return List()
        case "show":
            return Show(args.name or "")
        case "rename":
            return Rename(args.name, args.new_name)
        case "remove":
            return Remove(args.name)
    return Exchange()


def run(options: PeerOptions) -> Result | None:
    # The modules behind these import libraries that no other command needs.
    match options:
        case List():
            return _list()
        case Show(name):
            return _show(name)
        case Allow(name, may):
            peer = _peers().allow(name, may.words)
            return Result({"peer": peer_json.of(peer)}, f"{peer.name} may {grant.of_peer(peer).text}.")
        case Rename(name, new_name):
            peer = _peers().rename(name, new_name)
            return Result({"peer": peer_json.of(peer)}, f"{name} is now called {peer.name}.")
        case Remove(name):
            peer = _peers().remove(name)
            return Result({"removed": peer_json.of(peer)}, f"Removed peer {peer.name}.")
    from stages.steps import pair_hosts

    match options:
        case Add():
            return pair_hosts.add(options)
        case Join():
            return pair_hosts.offline_join(options) if options.offline else pair_hosts.join(options)
        case Invite():
            return pair_hosts.offline_invite(options) if options.offline else pair_hosts.invite(options)
        case Exchange():
            pair_hosts.answer_exchange()
    return None


def _peers() -> Peers:
    from tunnel.identity import private_files
    from tunnel.identity.peers import Peers

    return Peers(private_files.STATE / "peers")


def _list() -> Result:
    peers = _peers().all()
    rows = [[peer.name, peer.public.fingerprint, time.strftime("%Y-%m-%d", time.localtime(peer.added)),
             ", ".join(map(str, peer.servers)) or "-", grant.of_peer(peer).text] for peer in peers]
    text = table(["NAME", "FINGERPRINT", "PAIRED", "RENDEZVOUS", "MAY"], rows) if rows else "This host has no peers."
    return Result({"peers": [peer_json.of(peer) for peer in peers]}, text)


def _show(name: str) -> Result:
    if not name:
        from tunnel.identity import private_files
        from tunnel.identity.own_identity import Identity

        own = Identity.load(private_files.STATE / "identity").public
        data = {"fingerprint": own.fingerprint, "identity": own.to_text()}
        return Result({"own": data}, f"this host\n  fingerprint  {own.fingerprint}")
    peer = _peers().get(name)
    added = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(peer.added))
    lines = [peer.name, f"  fingerprint  {peer.public.fingerprint}", f"  paired       {added}",
             f"  may          {grant.of_peer(peer).text}",
             *(f"  rendezvous   {url}" for url in peer.rendezvous)]
    return Result({"peer": peer_json.of(peer)}, "\n".join(lines))
