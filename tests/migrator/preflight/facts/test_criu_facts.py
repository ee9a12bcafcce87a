# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU is asked once, and its answers are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.preflight.facts import criu_facts
from migrator.preflight.facts.criu_facts import CriuFacts
from tests.migrator.made_up import CPU, image


@pytest.fixture
def fake_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A criu that counts how often it is asked, and writes an image of a processor."""
    (tmp_path / "cpu").write_bytes(image(CPU))
    program = tmp_path / "bin" / "criu"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
echo "$*" >>{tmp_path}/calls
case "$*" in
"--config "*/bad*) echo "criu: unrecognized option '--log-level'" >&2; echo >&2; echo "Usage:" >&2; exit 1 ;;
*--version) echo "Version: 4.2.1" ;;
"--no-default-config check --feature pagemap_scan" | "--no-default-config check") echo "Looks good." ;;
"--no-default-config cpuinfo"*) cp {tmp_path}/cpu "$5/cpuinfo.img" ;;
*) echo "Error: no" >&2; exit 1 ;;
esac
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(criu_facts, "CONFIG", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_criu_is_asked_once(fake_criu: Path) -> None:
    cache = fake_criu / "run" / "facts.json"
    facts = criu_facts.gather(cache)
    assert (facts.version, facts.check_ok, facts.features) == ("4.2.1", True, ("pagemap_scan",))
    assert facts.cpu == CPU
    calls = (fake_criu / "calls").read_text()
    assert criu_facts.gather(cache) == facts
    assert (fake_criu / "calls").read_text() == calls
    (fake_criu / "bin" / "criu").write_text("#!/bin/sh\nexit 1\n")  # another program: asked again
    assert criu_facts.gather(cache).version == ""


def test_a_bad_answer_is_not_kept(fake_criu: Path) -> None:
    """It may come of a busy moment, and would hold up every move until the next boot."""
    cache, program = fake_criu / "facts.json", fake_criu / "bin" / "criu"
    good = program.read_text()
    bad = good.replace('"Looks good."', '"Looks bad."; exit 1')
    for text in (bad, good.ljust(len(bad))):  # for the cache the same program
        program.write_text(text)
        os.utime(program, ns=(0, 0))
        assert criu_facts.gather(cache).check_ok == (text != bad)


def test_configuration_files(fake_criu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at each time, and change none of the answers that are kept."""
    cache = fake_criu / "facts.json"
    plain = criu_facts.gather(cache)
    assert (plain.config_files, plain.config_faults) == ((), ())
    bad, good = fake_criu / "bad.conf", fake_criu / "home" / ".criu" / "default.conf"
    good.parent.mkdir(parents=True)
    for path in (bad, good):
        path.write_text("x\n")
    monkeypatch.setattr(criu_facts, "CONFIG", bad)
    facts = criu_facts.gather(cache)
    assert facts.config_files == (str(bad), str(good))
    assert facts.config_faults == ((str(bad), "unrecognized option '--log-level'"),)
    assert facts.version == plain.version and facts.check_ok


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"stamp": {}}', '{"stamp": {}, "facts": {"version": 3}}', "\xff"])
def test_a_damaged_cache_is_as_none(fake_criu: Path, text: str) -> None:
    cache = fake_criu / "facts.json"
    cache.write_text(text, encoding="latin-1")
    assert criu_facts.gather(cache).version == "4.2.1"


def test_without_criu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert criu_facts.gather(tmp_path / "cache") == CriuFacts()
