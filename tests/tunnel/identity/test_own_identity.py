# SPDX-License-Identifier: GPL-2.0-or-later
"""Identities: made once, kept to their owner, told apart by their fingerprints."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.identity.own_identity import ENCRYPTED_EXTRA, Identity, PublicIdentity
from tunnel.tunnel_errors import TunnelFileUnusable

IDENTITY = Identity.generate()


def test_made_at_first_use_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity"
    made = Identity.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Identity.load(path).public == made.public
    assert [entry.name for entry in path.parent.iterdir()] == ["identity"]


def test_two_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[PublicIdentity] = []
    threads = [threading.Thread(target=lambda: found.append(Identity.load(tmp_path / "identity").public))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity"
    Identity.load(path)
    path.chmod(mode)
    with pytest.raises(TunnelFileUnusable, match="others may access it") as caught:
        Identity.load(path)
    assert f"chmod 600 {path}" in caught.value.hint


def test_links_and_folders_are_refused(tmp_path: Path) -> None:
    Identity.load(tmp_path / "real")
    (tmp_path / "identity").symlink_to(tmp_path / "real")
    with pytest.raises(TunnelFileUnusable):
        Identity.load(tmp_path / "identity")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TunnelFileUnusable):
        Identity.load(tmp_path / "folder")


@pytest.mark.parametrize("change", [
    lambda text: "", lambda text: text[:-20], lambda text: text.replace("identity 1", "identity 2"),
    lambda text: text.replace("x25519", "ed25519"), lambda text: text + "more\n", lambda text: "\0" * 100,
    lambda text: text.replace("=", ""), lambda text: "x" * 2_000_000,
])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, change: object) -> None:
    path = tmp_path / "identity"
    Identity.load(path)
    assert callable(change)
    text = change(path.read_text())
    path.write_text(text)
    with pytest.raises(TunnelFileUnusable) as caught:
        Identity.load(path)
    assert path.read_text() == text
    assert caught.value.status == 70


def test_nothing_shows_the_private_half(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    identity = Identity.load(path)
    secrets = [line.split()[1] for line in path.read_text().splitlines()[1:]]
    path.write_text(path.read_text().replace("x25519 ", "x25519  "))
    with pytest.raises(TunnelFileUnusable) as caught:
        Identity.load(path)
    shown = repr(identity) + str(identity) + str(caught.value) + repr(caught.value) + str(caught.value.to_json())
    assert not any(secret in shown for secret in secrets)


def test_fingerprints_are_short_and_cover_both_keys() -> None:
    public = IDENTITY.public
    assert re.fullmatch("([a-z2-7]{4}-){4}[a-z2-7]{4}", public.fingerprint)
    others = [PublicIdentity(public.ed25519, os.urandom(32)), PublicIdentity(os.urandom(32), public.x25519),
              PublicIdentity(public.x25519, public.ed25519)]
    assert len({public.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert len({public.id, *(other.id for other in others)}) == 4


def test_text_and_back() -> None:
    assert PublicIdentity.from_text(IDENTITY.public.to_text()) == IDENTITY.public


@given(st.text(max_size=120) | st.binary(max_size=100).map(lambda keys: "mi1:" + strict_json.encode(keys)))
def test_any_text_is_an_identity_or_malformed(text: str) -> None:
    try:
        found = PublicIdentity.from_text(text)
    except Malformed:
        return
    assert found.to_text() == text


def test_signatures() -> None:
    signature = IDENTITY.sign(b"data")
    assert IDENTITY.public.verify(signature, b"data")
    assert not IDENTITY.public.verify(signature, b"date")
    assert not Identity.generate().public.verify(signature, b"data")
    assert not IDENTITY.public.verify(b"", b"data")
    # A key that is no point of the curve verifies nothing, and breaks nothing.
    assert not PublicIdentity(b"\xff" * 32, bytes(32)).verify(signature, b"data")


def test_encryption() -> None:
    data = IDENTITY.public.encrypt(b"secret", b"purpose")
    assert len(data) == len(b"secret") + ENCRYPTED_EXTRA
    assert IDENTITY.decrypt(data, b"purpose") == b"secret"
    for wrong in (b"", data[:-1], data + b"x", bytes(32) + data[32:], data[:32] + bytes(len(data) - 32)):
        with pytest.raises(Malformed):
            IDENTITY.decrypt(wrong, b"purpose")
    with pytest.raises(Malformed):
        IDENTITY.decrypt(data, b"another purpose")
    with pytest.raises(Malformed):
        Identity.generate().decrypt(data, b"purpose")
    for weak in (bytes(32), b"\1" + bytes(31)):  # of small order: everybody knows what such a key agrees on
        with pytest.raises(Malformed):
            PublicIdentity(IDENTITY.public.ed25519, weak).encrypt(b"secret", b"purpose")
