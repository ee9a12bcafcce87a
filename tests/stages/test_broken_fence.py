# SPDX-License-Identifier: GPL-2.0-or-later
"""Only the marks of a fence are left: it keeps nobody from starting the container, and so nothing may go by it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.base.result import Result
from migrator.config import config_reader, container_config, fences
from migrator.copies import after_crash, autostart, origins, standing
from migrator.copies.origins import Whose
from migrator.errors.containers import ContainerExists, OutOfOrder
from migrator.host import btrfs, subvolume_uuids
from migrator.host.btrfs import Subvolume
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState
from stages import resume, status
from stages.steps import arguments, ask_source
from tests.stages.earlier_stays import ARRIVED, CONFIG, ID, LATER, LEFT, begun, clean, journal, stands, state

__all__ = ["journal", "state"]  # fixtures


def lineinfile(line: str) -> Callable[[str], str]:
    """As Ansible's module has it by default: the last line that matches is replaced, or the line comes to the end."""
    key = line.partition("=")[0].strip()

    def edit(text: str) -> str:
        lines = text.splitlines()
        found = [number for number, each in enumerate(lines) if re.match(rf"{re.escape(key)}\s*=", each)]
        if found:
            lines[found[-1]] = line
        else:
            lines.append(line)
        return "\n".join(lines) + "\n"

    return edit


def without(pattern: str) -> Callable[[str], str]:
    return lambda text: "".join(f"{line}\n" for line in text.splitlines() if not re.search(pattern, line))


# Edits after which lxc-start starts it.
LETS: dict[str, Callable[[str], str]] = {
    "its hook was taken out": without("migrator-fence"),
    "another hook has replaced it": lineinfile("lxc.hook.pre-start = /usr/local/bin/ours"),
    "it was made a comment": lambda text: text.replace("lxc.hook.pre-start = /", "#lxc.hook.pre-start = /"),
    "taken back behind it": lambda text: f"{text}lxc.hook.pre-start =\n",
    "with all hooks": lambda text: f"{text}lxc.hook =\n",
    "a zero byte ahead of it": lambda text: f"lxc.tty.max = 1\0\n{text}",
    "its end alone is left": without(r"BEGIN|hook\.pre-start = "),
}
# And after which it does not.
REFUSES: dict[str, Callable[[str], str]] = {
    "nothing": str,
    "no end of line": lambda text: text.rstrip("\n"),
    "a line behind it": lambda text: f"{text}lxc.tty.max = 2\n",
    "started at boot": lineinfile("lxc.start.auto = 1"),
    "a hook more": lambda text: f"{text}lxc.hook.pre-start = /usr/local/bin/ours\n",
    "of an older version": without(r"ephemeral|lxc\.hook\.[a-z-]+ =$"),
}


@pytest.mark.parametrize("edit", sorted({**LETS, **REFUSES}))
def test_whether_a_fence_refuses(tmp_path: Path, edit: str) -> None:
    here = stands(tmp_path)
    text = {**LETS, **REFUSES}[edit](container_config.text_of(here.container / "config"))
    assert fences.refuses(here.container, text) is (edit in REFUSES)
    assert fences.is_whole(text, ID) is (edit in ("nothing", "no end of line"))
    assert not fences.is_whole(text, LATER)


FIRST = "#!/bin/sh\n# lxc.hook.pre-start, see migrator(1)\n"
SAYS = r"printf '%s\n' 'it'\''s away'"
HOOK = f"{FIRST}{SAYS}\n{SAYS} 2>/dev/null >>/proc/$PPID/fd/2\nexit 1\n"


@pytest.mark.parametrize(("script", "refuses"), [
    ("#!/bin/sh\nexit 0\n", False), ("", False), (None, True), ("#!/bin/sh\necho no\nexit 1\n", False),
    (HOOK, True), (HOOK.rstrip("\n"), True),
    *((HOOK.replace("exit 1", instead), False) for instead in ("#exit 1", "# exit 1", "true || exit 1", "exit 1 # no")),
    (HOOK.replace("(1)\n", "(1)\nexit 0\n"), False), (HOOK.replace("it'", "it\nexit 0\n'"), True),
    (HOOK.replace("s away'", "s away'; exit 0; '"), False),
    # Of older versions.
    (f"{FIRST}{SAYS} | tee /dev/stderr\nexit 1\n", True), (HOOK.replace(">>", ">"), True),
    (HOOK.replace("(1)\n", '(1)\n[ "$MIGRATOR_RESTORES" != 0badc0de ] || exit 0\n'), True),
])
def test_what_its_hook_does_counts(tmp_path: Path, script: str | None, refuses: bool) -> None:
    """LXC starts nothing whose hook cannot be run. One that is not as it was written may let it be used."""
    here = stands(tmp_path)
    (here.container / container_config.FENCE_HOOK).unlink()
    if script is not None:
        (here.container / container_config.FENCE_HOOK).write_text(script)
    assert fences.refuses(here.container, container_config.text_of(here.container / "config")) is refuses


def test_an_include_may_take_it_back(tmp_path: Path) -> None:
    here = stands(tmp_path)
    (tmp_path / "common.conf").write_text("lxc.hook.pre-start =\n")
    text = container_config.text_of(here.container / "config")
    assert not fences.refuses(here.container, f"{text}lxc.include = {tmp_path}/common.conf\n")
    assert fences.refuses(here.container, f"lxc.include = {tmp_path}/common.conf\n{text}")


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("edit", sorted({**LETS, **REFUSES}))
def test_what_has_left_and_is_in_use_again_stays(journal: Journal, tmp_path: Path, edit: str,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    """Where its destination has burnt down it is the only one there is."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    config = here.container / "config"
    config.write_text({**LETS, **REFUSES}[edit](config.read_text()))
    assert (clean(journal, tmp_path) == []) is (edit in LETS)
    assert (here.rootfs / "written").exists() is (edit in LETS)
    told = capfd.readouterr().err.replace("\n", " ")
    assert ("does not prevent a start" in told) is (edit in LETS and "BEGIN" in config.read_text())


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("edit", sorted({**LETS, **REFUSES}))
def test_nothing_takes_its_place(journal: Journal, tmp_path: Path, edit: str) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    config = here.container / "config"
    config.write_text({**LETS, **REFUSES}[edit](config.read_text()))
    comes = Layout(tmp_path, "web", LATER)
    if edit in REFUSES:
        origins.refuse_foreign(journal, comes, ID, renamed=False)
        return
    assert origins.whose(comes) is Whose.FOREIGN
    with pytest.raises(ContainerExists):
        origins.refuse_foreign(journal, comes, ID, renamed=False)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("edit", sorted({**LETS, **REFUSES}))
def test_while_it_must_hold_it_is_made_whole_again(journal: Journal, tmp_path: Path, edit: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what keeps it refusing, and has a start that is refused do something: run hooks, or destroy it."""
    migration = begun(journal, tmp_path, Role.SOURCE, *LEFT[:3], destination_host="hostb")
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    here = stands(tmp_path)
    config = here.container / "config"
    before = {**LETS, **REFUSES}[edit](config.read_text())
    config.write_text(before)
    standing.restore_fence(migration)
    after = container_config.text_of(config)
    assert fences.is_whole(after, ID) and fences.refuses(here.container, after)
    assert (after == before) is not standing.is_put_back(migration)
    assert standing.is_put_back(migration) is (edit not in ("nothing", "no end of line"))


@pytest.mark.usefixtures("state")
def test_so_is_a_hook_that_refuses_no_more(journal: Journal, tmp_path: Path) -> None:
    migration = begun(journal, tmp_path, Role.SOURCE, *LEFT[:3], destination_host="hostb")
    here = stands(tmp_path)
    hook = here.container / container_config.FENCE_HOOK
    hook.write_text("#!/bin/sh\nexit 0\n")
    standing.restore_fence(migration)
    assert hook.read_text().endswith("exit 1\n") and standing.is_put_back(migration)


@pytest.mark.usefixtures("state")
def test_nobody_fences_what_is_used_again_after_it_had_moved_away(journal: Journal, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destination, which may have been set back to an earlier state, asks whether it may let it run once more."""
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    monkeypatch.setattr(standing, "runs", lambda _: False)
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    monkeypatch.setattr(autostart, "under_way", lambda: None)
    migration = begun(journal, tmp_path, Role.SOURCE, *LEFT, destination_host="hostb")
    here = stands(tmp_path)
    config = here.container / "config"
    with contextlib.ExitStack() as stack:
        service = Service(journal, stack)

        def word() -> object:
            return ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0)).leave

        assert word() == 90.0, "its fence stands"
        for text in (container_config.unfenced(config.read_text()),
                     container_config.fenced(CONFIG, here.container / "another", LATER)):
            config.write_text(text)
            with pytest.raises(OutOfOrder, match="may run here again"):
                word()
            assert config.read_text() == text
        config.unlink()
        assert word() == 90.0, "nothing is there that could be started"


@pytest.mark.usefixtures("state")
def test_a_fence_that_stands_is_looked_at_without_what_is_included(journal: Journal, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is frozen nobody waits for the file server of an include."""
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    migration = begun(journal, tmp_path, Role.SOURCE, *LEFT[:3], destination_host="hostb")
    here = stands(tmp_path)
    monkeypatch.setattr(config_reader, "read", lambda *_: pytest.fail("it is read"))
    standing.restore_fence(migration)
    assert not standing.is_put_back(migration) and fences.holds(
        here.container, container_config.text_of(here.container / "config"), ID)


# --- of what has moved away for good --------------------------------------------------------------------------


@pytest.fixture
def left(journal: Journal, tmp_path: Path, state: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """As it had moved away; then what writes this host's configurations has written its own anew."""
    for stage in (resume, status):
        monkeypatch.setattr(stage, "DEFAULT_PATH", tmp_path / "journal.db")
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(standing, "started_anew", lambda _: False)
    begun(journal, tmp_path, Role.SOURCE, *LEFT, destination_host="hostb", rootfs_uuid="rootfs")
    here = stands(tmp_path)
    (here.container / "config").write_text("lxc.start.auto = 1\n")
    return here


def said(journal: Journal, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> list[bool]:
    """Whether `status`, `status web`, `resume web` and `resume --all` at boot tell of it."""
    options = resume.ResumeOptions(destination="root@hostb", at_boot=True)
    texts = [status.run(status.StatusOptions(each)).text for each in ("", "web")]
    newest = journal.latest("web", tmp_path)
    texts.append(resume.one(options, "web", tmp_path).text if newest and newest.role is Role.SOURCE else "")
    capfd.readouterr()
    resume.every(options)
    return ["its fence was removed" in " ".join(text.split()) for text in (*texts, capfd.readouterr().err)]


def test_it_had_begun_to_come_back(journal: Journal, left: Layout, tmp_path: Path,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    """That was given up."""
    begun(journal, tmp_path, Role.DESTINATION, Event.ABANDON, Event.ABANDONED, id=LATER, origin=ID, given_up_here=False)
    assert said(journal, tmp_path, capfd) == [True, True, False, True]


@pytest.mark.parametrize("runs", [True, False])
def test_that_it_is_in_use_is_told(journal: Journal, left: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capfd: pytest.CaptureFixture[str], runs: bool) -> None:
    """Its destination has it, and its host starts it."""
    monkeypatch.setattr(standing, "started_anew", lambda _: runs)
    assert said(journal, tmp_path, capfd) == [True] * 4
    migration = journal.latest("web", tmp_path)
    assert migration and ("web runs here, though" in after_crash.note(migration)) is runs
    assert "it has moved to hostb" in after_crash.note(migration)
    assert "cleanup web --forget" in after_crash.note(migration)
    assert (left.container / "config").read_text() == "lxc.start.auto = 1\n", "and nothing else"


@pytest.mark.parametrize("how", ["its fence stands", "it was removed", "another one", "it has come back",
                                 "it moves again", "it is on its way back"])
def test_of_what_is_not_in_use_nothing_is_said(journal: Journal, left: Layout, tmp_path: Path, how: str,
                                               monkeypatch: pytest.MonkeyPatch,
                                               capfd: pytest.CaptureFixture[str]) -> None:
    config = left.container / "config"
    if how == "its fence stands":
        container_config.fence(left.container, config.read_text(), ID, "no")
    elif how == "it was removed":
        config.unlink()
    elif how in ("another one", "it has come back"):
        monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(path, "other", "", read_only=False, generation=1))
        monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter([] if how == "another one" else ["rootfs"]))
        if how == "it has come back":  # by an increment, upon what had been kept here
            begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, Event.FINISHED, id=LATER, origin=ID)
    else:  # to here: then it has that one's fence
        begun(journal, tmp_path, Role.SOURCE if how == "it moves again" else Role.DESTINATION, id=LATER, origin=ID)
        monkeypatch.setattr(resume, "one", lambda *_, **__: Result({}))
    assert said(journal, tmp_path, capfd) == [False] * 4


def test_no_share_that_is_gone_keeps_others_waiting(journal: Journal, left: Layout, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a whole fence nothing that a configuration includes is read; and others have had their turn before."""
    done: list[str] = []
    monkeypatch.setattr(config_reader, "read", lambda *_: done.append("read"))
    config = left.container / "config"
    container_config.fence(left.container, config.read_text(), ID, "no")
    assert not standing.is_in_use(journal.by_id(ID, Role.SOURCE))  # type: ignore[arg-type]
    assert done == []
    journal.create(id="00000009", role=Role.DESTINATION, name="other", lxcpath=tmp_path, peer="hostb",
                   event=Event.RECEIVE, rounds=[])

    def noted(what: str) -> str:
        done.append(what)
        return ""

    monkeypatch.setattr(resume, "one", lambda *_, **__: Result({}, noted("healed")))
    monkeypatch.setattr(after_crash, "in_use_note", lambda _: noted("asked"))
    resume.every(resume.ResumeOptions())
    assert done[0] == "healed" and "asked" in done
