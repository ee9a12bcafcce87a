# SPDX-License-Identifier: GPL-2.0-or-later
"""What CRIU says about this host: its version, `criu check`, the features we use, and the CPU.

Asking takes half a second, so good answers are kept until the next boot or the next version of CRIU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from migrator.base import log, programs
from migrator.base.run import environment, run
from migrator.criu.criu_dump import NFTABLES_LOCK, complaint
from migrator.errors import MigratorError
from migrator.preflight.facts import cpu
from migrator.preflight.facts.cpu import Cpu

CACHE = Path("/var/cache/migrator/criu-facts.json")
LIMIT = 30.0  # seconds for one question
# Asked with `criu check --feature`; a container can be moved without any of them.
FEATURES = ("mem_dirty_track", "pagemap_scan", "uffd-noncoop", NFTABLES_LOCK)
BPF_MAPS = "bpf_maps"  # our own name for it: CRIU has no question for this
CONFIG = Path("/etc/criu/default.conf")
USER_CONFIG = ".criu/default.conf"  # in $HOME
OUTPUT_MAX = 2000  # characters
PLAIN = "--no-default-config"  # what those files say changes no answer


@dataclasses.dataclass(frozen=True)
class CriuFacts:
    version: str = ""  # empty: not installed
    check_ok: bool = False
    check_output: str = ""
    features: tuple[str, ...] = ()
    cpu: Cpu | None = None  # None if CRIU has no way to compare CPUs of this type
    config_files: tuple[str, ...] = ()  # files that change what CRIU does without our knowledge
    # Those that CRIU refuses, and its words: it then does nothing at all.
    config_faults: tuple[tuple[str, str], ...] = ()


def gather(cache: Path = CACHE) -> CriuFacts:
    """The facts, from the cache if they are still valid."""
    program = programs.find("criu")
    if program is None:
        return CriuFacts()
    stamp = _stamp(program)
    facts = _cached(cache, stamp)
    if facts is None:
        facts = ask(Path(program))
        if facts.check_ok:  # a failure may be temporary
            _keep(cache, stamp, facts)
    files = config_files()
    faults = tuple((path, fault) for path in files if (fault := refused(path)))
    return dataclasses.replace(facts, config_files=files, config_faults=faults)


def config_files() -> tuple[str, ...]:
    """The files that CRIU reads before its command line (next_config in criu/config.c), as far as they exist."""
    home = environment().get("HOME")
    paths = [CONFIG, *([Path(home) / USER_CONFIG] if home else [])]
    return tuple(str(path) for path in paths if path.is_file())


def refused(path: str) -> str:
    """Why CRIU refuses this configuration file, for example because of an unknown option; "" if it does not.

    It would then refuse every command, and liblxc would say "execing criu failed, is it installed?".
    """
    good, output = _output(["criu", "--config", path, "--version"])
    if good:
        return ""
    return complaint(output).strip().splitlines()[0].removeprefix("criu: ")[:300] if output else "no reason given"


def ask(program: Path) -> CriuFacts:
    """The facts as CRIU reports them now."""
    version = parse_version(_output(["criu", PLAIN, "--version"])[1])
    good, output = _output(["criu", PLAIN, "check"])
    features = [feature for feature in FEATURES if _output(["criu", PLAIN, "check", "--feature", feature])[0]]
    if b"libbpf.so" in program.read_bytes():
        features.append(BPF_MAPS)
    return CriuFacts(
        version=version, check_ok=good, check_output=output[-OUTPUT_MAX:], features=tuple(features),
        cpu=_cpu(),
    )


def parse_version(text: str) -> str:
    """The number in the output of `criu --version`."""
    found = re.search(r"Version:\s*(\d+(?:\.\d+)*)", text)
    return found[1] if found else ""


def _output(argv: list[str]) -> tuple[bool, str]:
    try:
        done = run(argv, limit=LIMIT, check=False)
    except MigratorError as error:
        return False, str(error)
    return done.status == 0, (done.text + done.stderr.decode(errors="replace")).strip()


def _cpu() -> Cpu | None:
    with tempfile.TemporaryDirectory(prefix="migrator-cpu-") as folder:
        good, output = _output(["criu", PLAIN, "cpuinfo", "dump", "--images-dir", folder])
        try:
            return cpu.parse_image((Path(folder) / "cpuinfo.img").read_bytes()) if good else None
        except (OSError, ValueError) as error:
            log.debug(f"no facts about the processor: {error} {output}")
            return None


def _stamp(program: str) -> dict[str, Any]:
    found = Path(program).stat()
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "criu": [program, found.st_size, found.st_mtime_ns],
        "kernel": os.uname().release,
    }


def _cached(cache: Path, stamp: dict[str, Any]) -> CriuFacts | None:
    try:
        data = json.loads(cache.read_text())
        return msgspec.convert(data["facts"], CriuFacts) if data["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError, MigratorError):
        return None


def _keep(cache: Path, stamp: dict[str, Any], facts: CriuFacts) -> None:
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
            json.dump({"stamp": stamp, "facts": msgspec.to_builtins(facts)}, file)
        Path(file.name).replace(cache)
    except OSError as error:
        log.debug(f"CRIU's answers are not kept: {error}")
