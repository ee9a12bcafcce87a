# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller who is not root may have a destination do: what it was allowed, with what is its own, and no more."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

import stages
from migrator.config import container_config
from migrator.copies import origins
from migrator.errors import MigratorError
from migrator.errors.connection import ConsentNeeded, NotAllowed
from migrator.errors.containers import AlreadyMigrating, ContainerExists, InvalidName
from migrator.preflight.facts import host_facts
from migrator.preflight.facts.host_facts import Query
from migrator.record import grant, migration_paths, next_commands
from migrator.record.grant import Grant
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.remote.answering import kept_config
from stages import check
from tests.stages.callers import HOOK, HOSTA, ID, OF_A_MIGRATION, OTHER, Here, here, peer  # noqa: F401 -- a fixture
from tunnel.identity.peers import Peer

OPS = {"transfer", *(each.op for stage in stages.load_all() for each in getattr(stage, "HANDLERS", ()))}
OF_A_SOURCE = sorted(OPS - grant.ASKING)


def test_every_operation_of_a_migration_is_looked_at() -> None:
    assert set(OF_A_MIGRATION) | {"facts", "measure", "lxcpath", "subvolumes"} == set(OF_A_SOURCE)


@pytest.mark.parametrize("op", OF_A_SOURCE)
def test_by_default_a_peer_may_do_nothing(here: Here, op: str) -> None:
    for granted in (peer(), grant.nobody("0123"), grant.of_only("ask"), peer("hosta", "a-later-word")):
        with pytest.raises(NotAllowed, match="may not move containers here"):
            here.caller(granted)(op)
    assert list(here.pool.iterdir()) == []
    assert here.journal.all() == []


@pytest.mark.parametrize("op", OF_A_MIGRATION)
@pytest.mark.parametrize("other", [
    peer("hostc", "receive"), grant.ROOT, grant.of_only("receive"), grant.of_only("receive,as=hosta"),
], ids=["another peer", "root over SSH", "a key", "a key with its name"])
def test_a_migration_is_bound_to_who_has_begun_it(here: Here, op: str, other: Grant) -> None:
    here.begun(peer("hosta", "receive"))
    before = here.journal.by_id(ID, Role.DESTINATION)
    with pytest.raises(NotAllowed, match=f"migration {ID} was begun by someone else"):
        here.caller(other)(op)
    after = here.journal.by_id(ID, Role.DESTINATION)
    assert before and after and (before.state, before.given()) == (after.state, after.given())
    # Renamed here, it is still the same host.
    again = grant.of_peer(Peer("another", HOSTA, (), 0.0, ("receive",)))
    assert here.caller(again)("state")["state"] == State.RECEIVING


def test_who_guesses_an_id_learns_no_name_and_guesses_no_more(here: Here) -> None:
    here.begun(peer("hosta", "receive"), name="payroll")
    ask = here.caller(peer("hostc", "receive"))
    with pytest.raises(NotAllowed, match="someone else") as refused:
        ask("state")
    assert "payroll" not in str(refused.value.to_json())
    for number in range(1, grant.UNKNOWN_MAX):
        assert ask("state", id=f"{number:08x}")["state"] is None
    assert ask("state", id=OTHER)["state"] is None  # one that it has asked for already
    for op in ("state", "source-state"):
        with pytest.raises(NotAllowed, match="too many migrations"):
            ask(op, id="deadbeef")
    with pytest.raises(NotAllowed, match="someone else"):
        ask("state")
    root = here.caller(grant.ROOT)
    for number in range(1, grant.UNKNOWN_MAX + 9):
        assert root("source-state", id=f"{number:08x}")["state"] is None


@pytest.mark.parametrize("op", OF_A_MIGRATION)
def test_what_root_has_begun_over_ssh_is_no_peers(here: Here, op: str) -> None:
    here.begun(grant.ROOT)
    with pytest.raises(NotAllowed, match="someone else"):
        here.caller(peer("hosta", "receive"))(op)


def test_what_was_begun_before_there_were_callers_is_roots(here: Here) -> None:
    here.begun(grant.ROOT)
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration
    del migration._keys["caller"]
    migration.note("an older version's record")
    assert here.caller(grant.ROOT)("state")["state"] == State.RECEIVING
    with pytest.raises(NotAllowed):
        here.caller(peer("hosta", "receive"))("state")


def test_keys_with_names_of_their_own_are_told_apart(here: Here) -> None:
    here.begun(grant.of_only("receive,as=hosta"))
    assert here.caller(grant.of_only("receive,as=hosta"))("state")["state"]
    with pytest.raises(NotAllowed):
        here.caller(grant.of_only("receive,as=hostc"))("state")


# --- where to ---


def test_only_into_the_lxc_paths_that_were_allowed(here: Here) -> None:
    default, second = peer("hosta", "receive"), peer("hosta", "receive", f"lxcpath={here.second}")
    assert here.caller(default)("lxcpath", lxcpath=None)["lxcpath"] == str(here.pool)
    assert here.caller(second)("lxcpath", lxcpath=None)["lxcpath"] == str(here.second)
    for op in ("lxcpath", "begin", "abandon", "facts", "subvolumes"):
        for granted, wanted in ((default, here.second), (second, here.pool), (default, Path("/etc"))):
            with pytest.raises(NotAllowed, match="may move containers only to"):
                here.caller(granted)(op, lxcpath=str(wanted))
    assert here.journal.all() == []
    both = peer("hosta", "receive", f"lxcpath={here.second}", f"lxcpath={here.pool}")
    here.begun(both, lxcpath=f"{here.pool}/")
    here.begun(both, OTHER, name="shop", lxcpath=str(here.second))
    # Root goes anywhere.
    assert here.caller(grant.ROOT)("lxcpath", lxcpath="/srv")["lxcpath"] == "/srv"


def test_commands_for_here_name_the_lxc_path_of_who_may_use_but_that(here: Here) -> None:
    """Though he does not say so, as he did not name it: this host's own may have a container of that name, too."""
    here.begun(peer("hosta", "receive", f"lxcpath={here.second}"), lxcpath=str(here.second))
    here.begun(peer("hostc", "receive"), OTHER, name="shop")
    found = [here.journal.by_id(id_, Role.DESTINATION) for id_ in (ID, OTHER)]
    assert [next_commands.words("cleanup", each)[3:] for each in found if each] == [["-P", str(here.second)], []]


# --- with what ---


def test_hooks_take_consent(here: Here) -> None:
    ask = here.caller(peer("hosta", "receive"))
    with pytest.raises(ConsentNeeded, match=r"hook\.start-host") as caught:
        ask("begin", config=HOOK)
    assert caught.value.hint.endswith("migrator peer allow hosta receive --accept-hooks")
    assert here.journal.all() == []
    assert list(here.pool.iterdir()) == []
    assert ask("begin")["state"]
    with pytest.raises(ConsentNeeded):  # nor with the next round
        ask("begin", config=HOOK)
    assert kept_config(here.layout)[0].text == "lxc.uts.name = web\n"


def test_with_consent_they_come_along(here: Here) -> None:
    for number, granted in enumerate((peer("hosta", "receive", "hooks"), grant.ROOT, grant.of_only("receive,hooks"))):
        id_ = f"0000000{number}"
        here.begun(granted, id_, name=f"web{number}", config=HOOK, includes={"/srv/x.conf": "lxc.tty.max = 0\n"})
        carried = kept_config(Layout(here.pool, f"web{number}", id_))[0]
        assert (carried.text, carried.includes) == (HOOK, {"/srv/x.conf": "lxc.tty.max = 0\n"})


def test_what_is_included_from_elsewhere_takes_consent(here: Here) -> None:
    ask = here.caller(peer("hosta", "receive"))
    for path in ("/srv/x.conf", "/usr/share/lxc/not-on-this-host.conf", f"{here.pool}/web/rootfs/x.conf"):
        with pytest.raises(ConsentNeeded, match=r"lxc\.include"):
            ask("begin", config=f"lxc.include = {path}\n", includes={path: "lxc.hook.start = /x\n"})
    # What is sent along unasked is not even kept.
    ask("begin", includes={"/usr/share/lxc/x.conf": "lxc.hook.start = /x\n"})
    assert kept_config(here.layout)[0].includes == {}


def test_a_containers_folder_belongs_to_nobody_who_logs_in_here(here: Here) -> None:
    """Its owner can write the configuration."""
    for user in (1000, 1):
        with pytest.raises(ConsentNeeded, match=f"user {user}"):
            here.caller(peer("hosta", "receive"))("begin", mapped_root=user)
    here.begun(peer("hosta", "receive"), mapped_root=100000)


# --- to what ---


def test_a_fenced_copy_gives_way_to_its_own_container_alone(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name says nothing: a peer could send another `web` to have the copy of the true one deleted."""
    monkeypatch.setattr(origins, "_lives", lambda _: False)
    here.layout.container.mkdir()
    container_config.fence(here.layout.container, "lxc.uts.name = web\n", "00000003", "it has moved")
    here.journal.create(id="00000003", role=Role.SOURCE, name="web", lxcpath=here.pool, peer="peer:hosta",
                        event=Event.SEND, origin="00000001").move(Event.ROLL_BACK)
    went = here.journal.by_id("00000003", Role.SOURCE)
    assert went
    went.move(Event.ROLLED_BACK)
    for origin in (ID, "0000000f"):
        with pytest.raises(ContainerExists):
            here.caller(peer("hosta", "receive"))("begin", origin=origin)
    here.begun(peer("hosta", "receive"), origin="00000001")


def test_what_has_no_fence_is_nobodys_copy(here: Here) -> None:
    """Also for who asks before there is a migration, and so without an id."""
    here.layout.container.mkdir()
    (here.layout.container / "config").write_text("lxc.uts.name = web\n")
    for id_ in ("", ID):
        assert origins.whose(Layout(here.pool, "web", id_)) is origins.Whose.FOREIGN
    assert not origins.is_own_copy(here.journal, Layout(here.pool, "web", ""), ID, renamed=False)


def test_another_callers_migration_is_in_the_way_without_a_word_about_it(here: Here) -> None:
    here.begun(peer("hostc", "receive"))
    with pytest.raises(MigratorError) as caught:
        here.caller(peer("hosta", "receive"))("begin", id=OTHER)
    assert ID not in str(caught.value.to_json())
    assert "hostc" not in str(caught.value.to_json())


def test_uuids_of_other_containers_are_not_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows one can have that subvolume made part of what it sends."""
    folder = here.layout.folder

    @dataclasses.dataclass
    class Base:
        path: Path
        stream_uuid: str

    found = [Base(folder / f"{id_}.1", f"uuid of {id_}") for id_ in (OTHER, "00000005", "00000006")]
    monkeypatch.setattr(Layout, "bases", lambda _: found)
    for id_, origin in ((OTHER, OTHER), ("00000005", "00000001")):
        here.journal.create(id=id_, role=Role.DESTINATION, name="web", lxcpath=here.pool, peer="hosta",
                            event=Event.ABANDON, origin=origin, kept=[f"{id_}.1"]).move(Event.ABANDONED)
    ask = here.caller(peer("hosta", "receive"))
    assert ask("subvolumes") == ask("subvolumes", origin=ID) == {"subvolumes": []}
    assert ask("begin", origin="00000001")["subvolumes"] == ["uuid of 00000005"]
    assert ask("subvolumes", origin="00000001") == {"subvolumes": ["uuid of 00000005"]}
    assert len(here.caller(grant.ROOT)("subvolumes")["subvolumes"]) == 3


def test_a_caller_has_only_so_many_migrations(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrator.remote.answering.UNFINISHED_MAX", 2)
    monkeypatch.setattr("migrator.remote.answering.KNOWN_MAX", 4)
    granted = peer("hosta", "receive")
    for number in range(2):
        here.begun(granted, f"0000001{number}", name=f"web{number}")
    with pytest.raises(NotAllowed, match="too many"):
        here.caller(granted)("begin", id="00000012", name="web2")
    here.begun(peer("hostc", "receive"), "00000013", name="web3")  # others are not hit
    for number in range(2):
        here.caller(granted)("abandon", id=f"0000001{number}", name=f"web{number}")
    for number in range(2):
        here.caller(granted)("abandon", id=f"0000002{number}", name=f"shop{number}")
    with pytest.raises(NotAllowed, match="too many"):
        here.caller(granted)("abandon", id="00000022", name="shop2")


def test_nor_may_it_give_up_any_number_that_never_began(here: Here) -> None:
    """And what others have had recorded so stays: else a late message could begin what root has given up."""
    here.caller(grant.ROOT)("abandon", id="00000030", name="db")
    both = peer("hosta", "receive", f"lxcpath={here.pool}", f"lxcpath={here.second}")
    here.caller(both)("abandon", id="00000031", lxcpath=str(here.second), name="db")
    ask = here.caller(both)
    for number in range(grant.ABANDONS_MAX):
        ask("abandon", id=f"{0x100 + number:08x}", name="db")
    with pytest.raises(NotAllowed, match="that never began"):
        ask("abandon", id=OTHER, name="db")
    assert here.journal.by_id(OTHER, Role.DESTINATION) is None
    for id_ in ("00000030", "00000031", f"{0x100 + number:08x}"):
        assert here.journal.by_id(id_, Role.DESTINATION), id_
    assert here.journal.by_id(f"{0x100:08x}", Role.DESTINATION) is None
    assert ask("abandon", id=f"{0x100 + number:08x}", name="db")["state"] == State.ABANDONED  # repeated


def test_who_has_too_many_keeps_nobody_off(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrator.remote.answering.KNOWN_MAX", 0)
    with migration_paths.locked("web", lxcpath=here.pool), pytest.raises(NotAllowed, match="too many"):
        here.caller(peer("hosta", "receive"))("abandon")


def test_where_a_migration_comes_from_is_not_the_callers_word(here: Here) -> None:
    """`migrator resume` asks the source: it must not be sent to some host, or with some options."""
    here.begun(peer("hosta", "receive"), source_host="-oProxyCommand=x")
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration and migration.peer == "peer:hosta"
    with pytest.raises(InvalidName):
        here.caller(grant.of_only("receive"))("begin", id=OTHER, name="shop", source_host="-oProxyCommand=x")
    here.begun(grant.of_only("receive"), OTHER, name="shop")
    migration = here.journal.by_id(OTHER, Role.DESTINATION)
    assert migration and migration.peer == "hosta"


# --- what it may see ---


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """What this host was looked at for; the look itself is short."""
    asked: list[Query] = []
    gather = host_facts.gather

    def short(query: Query) -> Any:
        asked.append(query)
        return looked_once

    looked_once = gather(Query("/"))
    monkeypatch.setattr(host_facts, "gather", short)
    return asked


SECRETS = ("/root/.ssh/id_ed25519", "/etc/shadow", "/home/user/secret", "/proc/1/root")


def test_facts_are_no_oracle_for_files(here: Here, looked: list[Query]) -> None:
    own = ("/usr/share/lxc/config/common.conf", "/dev/null")
    query = msgspec.to_builtins(Query("/etc", (*SECRETS, *own), (*SECRETS, own[0])))
    told = here.caller(peer("hosta", "receive"))("facts", query=query)
    assert looked == [Query(str(here.pool), own, own[:1])]
    assert told["facts"]["hooks_fix"] == "migrator peer allow hosta receive --accept-hooks"
    # Who may bring containers that mount them could look for itself.
    told = here.caller(peer("hosta", "receive", "hooks"))("facts", query=query)
    assert (looked[-1].paths, looked[-1].includes) == ((*SECRETS, *own), (*SECRETS, own[0]))
    assert told["facts"]["hooks_fix"] == ""
    many = msgspec.to_builtins(Query("/", tuple(f"/dev/{n}" for n in range(9000)) + ("/dev/null",) * 500))
    here.caller(peer("hosta", "receive"))("facts", query=many)
    assert len(looked[-1].paths) == check.PATHS_MAX


def test_facts_have_a_limit(here: Here, looked: list[Query]) -> None:
    ask = here.caller(peer("hosta", "receive"))
    for _ in range(grant.FACTS_MAX):
        ask("facts")
    with pytest.raises(NotAllowed, match="too often"):
        ask("facts")
    assert len(looked) == grant.FACTS_MAX


# --- who containers have gone to ---


def test_a_peer_may_ask_about_what_goes_to_it(here: Here) -> None:
    here.journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=here.pool, peer="peer:hosta", event=Event.SEND)
    for granted in (peer(), grant.of_only("ask"), grant.ROOT):
        assert here.caller(granted)("source-state")["state"] == State.PREPARING
    with pytest.raises(NotAllowed, match="does not go to it"):
        here.caller(peer("hostc", "receive"))("source-state")
    with pytest.raises(NotAllowed, match="may not ask"):
        here.caller(grant.of_only("receive"))("source-state")
    assert here.caller(peer("hostc"))("source-state", id=OTHER)["state"] is None


@pytest.mark.parametrize(("granted", "peer_", "heard"), [
    (grant.ROOT, "root@hostb", True),
    (peer("hosta"), "peer:hosta", True),
    (grant.of_only("ask,as=hostb"), "root@hostb", True),
    (grant.of_only("ask,as=hostc"), "root@hostb", False),
    (grant.of_only("ask"), "root@hostb", False),  # whose key that is, it does not say
])
def test_only_the_destination_has_heard_of_a_rollback(here: Here, granted: Grant, peer_: str, heard: bool) -> None:
    """What is not marked is told by `rollback`: another host must not end the reminder of one that may come back."""
    migration = here.journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=here.pool, peer=peer_,
                                    event=Event.SEND, destination_host="hostb")
    migration.move(Event.ROLL_BACK, forced=True, abandoned=False)
    migration.move(Event.ROLLED_BACK)
    assert here.caller(granted)("source-state", never=True)["state"] == State.ROLLED_BACK
    found = here.journal.by_id(ID, Role.SOURCE)
    assert found and found.owes is not heard


def test_in_the_way_for_root_is_told_as_ever(here: Here) -> None:
    here.begun(grant.ROOT)
    with pytest.raises(AlreadyMigrating, match=f"migration {ID}"):
        here.caller(grant.ROOT)("begin", id=OTHER)
