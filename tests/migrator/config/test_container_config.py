# SPDX-License-Identifier: GPL-2.0-or-later
"""A configuration on its way to another host, and the fence around a copy that must not be started."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.config import container_config as config
from migrator.config import include_copies
from migrator.config.config_reader import settings
from migrator.errors.containers import ConfigInvalid

COPIES = Path("/pool/web/migrator-include/0badc0de")
TEXT = """\
# made by hand
lxc.uts.name = web
lxc.rootfs.path = btrfs:/pool/web/rootfs
  lxc.net.0.type=veth
lxc.net.0.link = lxcbr0
lxc.net.1.link = br-storage
lxc.include = /usr/share/lxc/config/common.conf
lxc.mount.entry = /srv/lxcbr0 srv none bind 0 0
lxc.environment = GREETING=a = b
#lxc.net.0.link = commented
"""


def test_settings() -> None:
    found = settings(TEXT)
    assert found[:2] == [("lxc.uts.name", "web"), ("lxc.rootfs.path", "btrfs:/pool/web/rootfs")]
    assert ("lxc.net.0.type", "veth") in found
    assert ("lxc.environment", "GREETING=a = b") in found
    assert ("lxc.net.0.link", "commented") not in found
    assert settings("lxc.hook.start =\nnonsense\n = x\n") == [("lxc.hook.start", "")]


def rewritten(bridges: dict[str, str] | None = None, includes: dict[str, str] | None = None) -> list[str]:
    return config.rewritten(TEXT, bridges=bridges or {}, includes=includes or {}).splitlines()


def test_only_what_must_change_changes() -> None:
    expected = TEXT.splitlines()
    expected[4] = "lxc.net.0.link = br0"
    del expected[2]
    assert rewritten({"lxcbr0": "br0"}) == expected
    assert moved(TEXT, bridges={"lxcbr0": "br0"}) == [*expected, "lxc.rootfs.path = btrfs:/new"]


def moved(text: str, bridges: dict[str, str] | None = None) -> list[str]:
    text, copies = config.adopted(config.Carried(text, {}), COPIES, lambda _: True, rootfs=Path("/new"),
                                  bridges=bridges or {})
    assert not copies
    return text.splitlines()


@pytest.mark.parametrize(("before", "after"), [
    ("/pool/web/rootfs", "/new"), ("btrfs:/pool/web/rootfs", "btrfs:/new"), ("dir:/pool/web/rootfs", "dir:/new"),
])
def test_the_storage_prefix_stays(before: str, after: str) -> None:
    assert moved(f"lxc.rootfs.path = {before}\n") == [f"lxc.rootfs.path = {after}"]


@pytest.mark.parametrize(("text", "storage"), [
    ("", ""),  # LXC would take the host's own
    ("lxc.rootfs.path = btrfs:/a\nlxc.rootfs.path =\n", ""),
    ("lxc.rootfs.path = dir:/a\nlxc.rootfs.path = btrfs:/b\n", "btrfs:"),
    ("lxc.include = /x.conf\n", "dir:"), ("lxc.include = /x.conf\nlxc.rootfs.path = btrfs:/b\n", "btrfs:"),
    ("lxc.include = /x.d\n", ""), ("lxc.include = /BOX/\n", "btrfs:"), ("lxc.rootfs.path = overlay:/etc:/x\n", ""),
])
def test_there_is_one_root_file_system_and_it_is_that_of_the_container(text: str, storage: str) -> None:
    carried = config.Carried(f"lxc.uts.name = web\nlxc.tty.max = 4\n{text}", {
        "/x.conf": "lxc.rootfs.path = dir:/a\nlxc.tty.max = 1\n", "/x.d/a.conf": "lxc.rootfs.path = /\n",
        "/BOX/a.conf": "lxc.rootfs.path = btrfs:/b\n"})
    own, copies = config.adopted(carried, COPIES, lambda _: False, rootfs=Path("/new"), bridges={}, new_name="shop")
    assert {("lxc.uts.name", "shop"), ("lxc.tty.max", "4")} <= set(settings(own))
    assert settings(own)[-1] == ("lxc.rootfs.path", f"{storage}/new")
    assert [text.count("lxc.rootfs.path") for text in (own, *copies.values())] == [1, *[0] * len(copies)]


def test_a_folder_may_be_named_with_a_slash_at_its_end() -> None:
    carried = config.Carried("lxc.include = /y.X/\n", {"/y.X/a.conf": "lxc.tty.max = 1\n"})
    own, copies = config.adopted(carried, COPIES, lambda _: False, rootfs=Path("/new"), bridges={})
    assert [value for key, value in settings(own) if key == "lxc.include"] == [str(COPIES / "00-y.X")]
    assert set(copies) == {COPIES / "00-y.X", COPIES / "01-a.conf"}
    assert copies[COPIES / "00-y.X"] == f"lxc.include = {COPIES / '01-a.conf'}\n"


def test_what_looks_like_a_fence_goes() -> None:
    """It would be taken out later, and what stands beside it become a line of its own."""
    text = "# BEGIN migrator fence# END migrator fence lxc.hook.start = /x\nlxc.tty.max = 1\n# END migrator fence\n"
    lines = moved(text)
    assert lines == ["lxc.tty.max = 1", "lxc.rootfs.path = /new"]
    assert config.unfenced(config.fenced("\n".join(lines) + "\n", Path("/hook"), "0badc0de")).splitlines() == lines


@pytest.mark.parametrize(("text", "good"), [
    ("lxc.rootfs.path = btrfs:/pool/web/rootfs\n", True), ("lxc.rootfs.path = /pool/web/rootfs\n", True),
    ("", False), ("lxc.rootfs.path = /\n", False), ("lxc.rootfs.path = /pool/web/rootfs\nlxc.rootfs.path =\n", False),
    ("lxc.rootfs.path = overlay:/pool/web/rootfs\n", False),
])
def test_nothing_is_run_on_another_root_file_system(text: str, good: bool) -> None:
    if good:
        config.require_rootfs("web", Path("/pool/web/config"), text, Path("/pool/web/rootfs"))
        return
    with pytest.raises(ConfigInvalid, match="its root file system is"):
        config.require_rootfs("web", Path("/pool/web/config"), text, Path("/pool/web/rootfs"))


def test_missing_includes_point_to_their_copies() -> None:
    lines = rewritten(includes={"/usr/share/lxc/config/common.conf": "/pool/web/migrator-include/00-common.conf"})
    assert "lxc.include = /pool/web/migrator-include/00-common.conf" in lines


def test_a_new_name_is_the_host_name_of_the_next_start() -> None:
    lines = config.rewritten(f"{TEXT}lxc.utsname = old\n", bridges={}, includes={},
                             new_name="shop").splitlines()
    assert [line for line in lines if "uts" in line] == ["lxc.uts.name = shop"]
    assert lines[-1] == "lxc.uts.name = shop", "no include has the last word"


def test_a_bridge_is_told_by_what_lxc_makes_of_its_name() -> None:
    text = "lxc.net.0.link = br-production-east\n"
    assert config.rewritten(text, bridges={"br-production-e": "lxcbr0"}, includes={}) == "lxc.net.0.link = lxcbr0\n"


def test_bridges_are_swapped_and_not_chained() -> None:
    lines = rewritten(bridges={"lxcbr0": "br-storage", "br-storage": "lxcbr0"})
    assert "lxc.net.0.link = br-storage" in lines
    assert "lxc.net.1.link = lxcbr0" in lines


# --- reading --------------------------------------------------------------------------------------------------


def test_reading_takes_includes_along(tmp_path: Path) -> None:
    folder = tmp_path / "common.conf.d"
    folder.mkdir()
    (folder / "b.conf").write_text("lxc.cap.drop = mknod\n")
    (folder / "a.conf").write_text(f"lxc.include = {tmp_path}/deep.conf\n")
    (folder / "README").write_text("not one of them\n")
    (tmp_path / "deep.conf").write_text("lxc.cap.drop = sys_time\n")
    (tmp_path / "config").write_text(f"lxc.include = {folder}\nlxc.uts.name = web\n")
    carried = config.read(tmp_path / "config", "web")
    assert carried.text == (tmp_path / "config").read_text()
    assert carried.includes.keys() == {str(folder / "a.conf"), str(folder / "b.conf"), str(tmp_path / "deep.conf")}


def test_the_digest_sees_every_change(tmp_path: Path) -> None:
    (tmp_path / "inc.conf").write_text("lxc.cap.drop = mknod\n")
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/inc.conf\n")
    first = config.read(tmp_path / "config", "web").digest
    (tmp_path / "inc.conf").write_text("lxc.cap.drop = sys_time\n")
    second = config.read(tmp_path / "config", "web").digest
    (tmp_path / "config").write_text(f"lxc.include = {tmp_path}/inc.conf\nlxc.uts.name = web\n")
    assert len({first, second, config.read(tmp_path / "config", "web").digest}) == 3


def test_a_fence_does_not_count_as_a_change(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(TEXT.replace("lxc.include", "#lxc.include"))
    before = config.read(tmp_path / "config", "web").digest
    config.fence(tmp_path, (tmp_path / "config").read_text(), "0badc0de", "it is elsewhere")
    assert config.read(tmp_path / "config", "web").digest == before


# --- on the other host ----------------------------------------------------------------------------------------

CARRIED = config.Carried(
    "lxc.include = /etc/lxc/there.conf\nlxc.include = '/etc/lxc/mine.conf'\nlxc.include = /etc/lxc/mine.d\n"
    "lxc.include = /etc/lxc/there.d/\nlxc.include = /etc/lxc/gone.d/\nlxc.include = /etc/lxc/empty.d\n",
    {"/etc/lxc/there.conf": "lxc.tty.max = 1\n", "/etc/lxc/there.d/x.conf": "lxc.tty.max = 2\n",
     "/etc/lxc/mine.conf": "lxc.net.0.link = lxcbr0\nlxc.include = /etc/lxc/deep.conf\n",
     "/etc/lxc/mine.d/b.conf": "lxc.tty.max = 3\n", "/etc/lxc/mine.d/a.conf": "lxc.include = /etc/lxc/there.conf\n",
     "/etc/lxc/deep.conf": "lxc.tty.max = 4\n"},
)


def adopted(there: set[str]) -> tuple[list[str], dict[str, list[str]]]:
    text, copies = config.adopted(CARRIED, COPIES, there.__contains__, rootfs=Path("/new"), bridges={"lxcbr0": "br0"})
    assert all(path.parent == COPIES for path in copies)
    assert text.endswith("\nlxc.rootfs.path = /new\n")
    return text.splitlines()[:-1], {path.name: copy.split("\n")[:-1] for path, copy in copies.items()}


def test_what_the_other_host_has_is_its_own() -> None:
    there = {value for _, value in settings(CARRIED.text)}
    assert adopted(there) == (CARRIED.text.splitlines(), {})


def test_what_the_other_host_lacks_comes_as_a_copy() -> None:
    """Nested ones too; a folder's files in the order in which they were read; a bridge by its name there."""
    text, copies = adopted({"/etc/lxc/there.conf", "/etc/lxc/there.d/"})
    assert text == [
        "lxc.include = /etc/lxc/there.conf", f"lxc.include = {COPIES}/00-mine.conf",
        f"lxc.include = {COPIES}/01-mine.d", "lxc.include = /etc/lxc/there.d/", "lxc.include = /etc/lxc/gone.d/",
        f"lxc.include = {COPIES}/02-empty.d",
    ]
    by_words = {name.partition("-")[2]: lines for name, lines in copies.items()}
    paths = {name.partition("-")[2]: f"{COPIES}/{name}" for name in copies}
    assert by_words == {
        "mine.conf": ["lxc.net.0.link = br0", f"lxc.include = {paths['deep.conf']}"], "deep.conf": ["lxc.tty.max = 4"],
        "mine.d": [f"lxc.include = {paths['b.conf']}", f"lxc.include = {paths['a.conf']}"],
        "b.conf": ["lxc.tty.max = 3"], "a.conf": ["lxc.include = /etc/lxc/there.conf"], "empty.d": [""],
    }


def test_a_copy_is_carried_on_under_its_old_name() -> None:
    once = config.Carried("lxc.include = /pool/web/migrator-include/0badc0de/00-mine.conf\n",
                          {"/pool/web/migrator-include/0badc0de/00-mine.conf": "lxc.tty.max = 1\n"})
    _, copies = config.adopted(once, COPIES, lambda _: False, rootfs=Path("/new"), bridges={})
    assert [path.name for path in copies] == ["00-mine.conf"]


@pytest.mark.parametrize("value", ["/", "//", "..", "/etc/..", "/x\ty/"])
def test_no_name_from_elsewhere_leads_out_of_the_folder(value: str) -> None:
    _, copies = config.adopted(config.Carried(f"lxc.include = {value}\n", {value: "lxc.tty.max = 1\n"}), COPIES,
                               lambda _: False, rootfs=Path("/new"), bridges={})
    assert [Path(os.path.normpath(path)).parent for path in copies] == [COPIES]


def test_copies_go_with_their_migration(tmp_path: Path) -> None:
    for name in ("0badc0de", "00000001", "mine"):
        (tmp_path / include_copies.FOLDER / name).mkdir(parents=True)

    def left() -> set[str]:
        return {path.name for path in (tmp_path / include_copies.FOLDER).iterdir()}

    include_copies.drop(tmp_path, "00000002")
    assert left() == {"0badc0de", "00000001", "mine"}
    include_copies.drop_unused(tmp_path, keep="0badc0de")
    assert left() == {"0badc0de", "mine"}, "what is not named as we name it is somebody else's"
    include_copies.drop(tmp_path, "0badc0de")
    assert left() == {"mine"}
    (tmp_path / include_copies.FOLDER / "mine").rmdir()
    include_copies.drop(tmp_path, "0badc0de")
    assert not (tmp_path / include_copies.FOLDER).exists()


def test_whose_fence_says_that_it_lives_on_elsewhere(tmp_path: Path) -> None:
    assert not config.is_superseded(tmp_path)
    hook = tmp_path / config.FENCE_HOOK
    hook.write_bytes(b"#!/bin/sh\n# \xff\n")
    assert not config.is_superseded(tmp_path)
    hook.write_bytes(b"#!/bin/sh\n# \xff " + config.SUPERSEDED.encode())
    assert config.is_superseded(tmp_path)


def test_a_containers_folder_goes_with_what_is_ours_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    for kept in (True, False):
        (folder / include_copies.FOLDER / "0badc0de").mkdir(parents=True)
        (folder / "rootfs").mkdir()
        for name in ("config", config.FENCE_HOOK, ".config.new", f".{config.FENCE_HOOK}.new"):
            (folder / name).write_text("")
        if kept:
            (folder / "notes").write_text("mine")
            assert config.remove(folder) == [folder / "notes"]
            assert {each.name for each in folder.iterdir()} > {"notes", "config", config.FENCE_HOOK, "migrator-include"}
            assert config.remove(folder, "0badc0de") == [folder / "notes"] == list(folder.iterdir())
            (folder / "notes").unlink()
        else:
            assert config.remove(folder) == []
    assert not folder.exists()


# --- the fence ------------------------------------------------------------------------------------------------


def test_fence_and_back(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(TEXT + "lxc.start.auto = 1\n")
    config.fence(tmp_path, (tmp_path / "config").read_text(), "0badc0de", "it is elsewhere")
    text = (tmp_path / "config").read_text()
    assert config.fence_of(text) == "0badc0de"
    # What LXC reads last counts.
    assert [value for key, value in settings(text) if key == "lxc.start.auto"][-1] == "0"
    assert in_effect(text, "lxc.hook.pre-start") == [str(tmp_path / config.FENCE_HOOK)]
    config.unfence(tmp_path, "00000001")  # another migration's
    assert (tmp_path / "config").read_text() == text
    config.unfence(tmp_path, "0badc0de")
    assert (tmp_path / "config").read_text() == TEXT + "lxc.start.auto = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_fencing_again_replaces_the_fence(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(TEXT)
    for id in ("00000001", "00000002"):
        config.fence(tmp_path, (tmp_path / "config").read_text(), id, "it is elsewhere")
    text = (tmp_path / "config").read_text()
    assert config.fence_of(text) == "00000002"
    assert text.count(config.FENCE_BEGIN) == 1


def test_the_hook_refuses_and_says_why(tmp_path: Path) -> None:
    message = "web's copy `id` $HOME \"is\" 100% elsewhere\\n"
    config.fence(tmp_path, TEXT, "0badc0de", message)
    # LXC reads a hook's output into its log; who started LXC sees what goes to LXC's own stderr.
    lxc = f'out=$({tmp_path / config.FENCE_HOOK} web lxc pre-start 2>&1); echo $?; printf "%s\\n" "$out"'
    done = subprocess.run(["sh", "-c", lxc], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.stdout == f"1\n{message}\n"
    assert done.stderr == message + "\n"


def test_without_fence() -> None:
    assert config.fence_of(TEXT) == ""
    assert config.unfenced(TEXT) == TEXT


def in_effect(text: str, key: str) -> list[str]:
    """What a key has that can stand in a configuration more than once: an empty value takes back those before it."""
    found: list[str] = []
    for value in [value for each, value in settings(text) if each == key]:
        found = [*found, value] if value else []
    return found


@pytest.mark.parametrize("own", [
    "lxc.hook.pre-start = /own\n", "lxc.hook.pre-start =\nlxc.hook.pre-start = /own\n",
    "lxc.hook.stop = /own\nlxc.hook.post-stop = /own\n", "lxc.ephemeral = 1\n", "lxc.start.auto = 1",
])
def test_a_start_that_is_refused_does_nothing_else(own: str) -> None:
    """liblxc runs the hooks of the end after one of pre-start has failed, and then destroys what is ephemeral."""
    text = config.fenced(TEXT + own, Path("/pool/web/hook"), "0badc0de")
    assert in_effect(text, "lxc.hook.pre-start") == ["/pool/web/hook"]
    assert in_effect(text, "lxc.hook.stop") == in_effect(text, "lxc.hook.post-stop") == []
    assert dict(settings(text))["lxc.ephemeral"] == dict(settings(text))["lxc.start.auto"] == "0"


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\r\n", "a\r\nb", "\n\na\n\n\n", "ä\n\x0c", "a\udcff\n",
                                  "\0", "a\0b", "a\n\0\nb\n", "a\n\0"])
def test_fencing_a_file_and_back_changes_no_byte(tmp_path: Path, text: str) -> None:
    before = text.encode(errors="surrogateescape")
    (tmp_path / "config").write_bytes(before)
    for id in ("00000001", "0badc0de"):
        config.fence(tmp_path, config.text_of(tmp_path / "config"), id, "it is elsewhere")
    config.unfence(tmp_path, "0badc0de")
    assert (tmp_path / "config").read_bytes() == before


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_fencing_loses_nothing(text: str) -> None:
    """And it stands where LXC reads it, whatever is there besides."""
    fenced = config.fenced(text, Path("/pool/web/hook"), "0badc0de")
    assert config.unfenced(fenced) == text
    assert in_effect(fenced, "lxc.hook.pre-start") == ["/pool/web/hook"]
    assert dict(settings(fenced))["lxc.start.auto"] == "0"


OLD_FENCE = ("\n# BEGIN migrator fence (0badc0de)\nlxc.start.auto = 0\n"
             "lxc.hook.pre-start = /pool/web/migrator-fence\n# END migrator fence\n")


def test_the_fence_of_an_older_version() -> None:
    assert config.fence_of(TEXT + OLD_FENCE) == "0badc0de"
    assert config.unfenced(TEXT + OLD_FENCE) == TEXT
    again = config.fenced(TEXT + OLD_FENCE, Path("/hook"), "00000001")
    assert again == config.fenced(TEXT, Path("/hook"), "00000001")


@pytest.mark.parametrize("text", ["lxc.tty.max = 1", "lxc.tty.max = 1\n", ""])
def test_what_somebody_writes_behind_a_fence_stays(text: str) -> None:
    fenced = config.fenced(text, Path("/hook"), "0badc0de")
    assert settings(config.unfenced(fenced + "lxc.pty.max = 2\n")) == [*settings(text), ("lxc.pty.max", "2")]


def test_a_beginning_without_an_end_takes_nothing_along() -> None:
    """A configuration from another host may have one."""
    text = "# BEGIN migrator fence (00000001)\n" + TEXT
    fenced = config.fenced(text, Path("/hook"), "0badc0de")
    assert config.fence_of(fenced) == "0badc0de"
    assert config.unfenced(fenced) == text


# --- writing --------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("old")
    path.chmod(0o640)
    with path.open() as reader:
        config.write_file(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [None, 0o600, 0o755])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mode: int | None) -> None:
    old = os.umask(0o077)
    try:
        config.write_file(tmp_path / "new", "text", mode=mode)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == (mode or 0o644)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """A container's folder is root's, but what lies in it came from another host."""
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / ".config.new").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        config.write_file(tmp_path / "config", "text")
    assert (tmp_path / "victim").read_text() == "untouched"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="config cannot be read: No such file") as refused:
        config.read(tmp_path / "config", "web")
    assert refused.value.fields["name"] == "web"
    (tmp_path / "config").write_text("lxc.include = relative.conf\nlxc.include = /nowhere/at/all.conf\n")
    with pytest.raises(ConfigInvalid, match=r"/nowhere/at/all\.conf"):
        config.read(tmp_path / "config", "web")
    (tmp_path / "config").write_bytes(b"lxc.uts.name = \xff\n")
    with pytest.raises(ConfigInvalid, match="config is not UTF-8 text"):
        config.read(tmp_path / "config", "web")


def test_the_digest_does_not_hang_on_the_order_of_includes() -> None:
    one = config.Carried("a", {"/x": "b", "/y": "c"})
    assert one.digest == config.Carried("a", {"/y": "c", "/x": "b"}).digest
    assert one.digest != config.Carried("a", {"/x": "c", "/y": "b"}).digest


def test_a_fence_goes_from_what_was_edited_and_without_its_hook(tmp_path: Path) -> None:
    """By hand, meanwhile, in an editor that does not write UTF-8."""
    config.fence(tmp_path, "lxc.uts.name = web\n", "0badc0de", "no")
    path = tmp_path / "config"
    path.write_bytes(b"# M\xfcller\n" + path.read_bytes())
    (tmp_path / config.FENCE_HOOK).unlink()
    config.unfence(tmp_path, "0badc0de")
    assert path.read_bytes() == b"# M\xfcller\nlxc.uts.name = web\n"
