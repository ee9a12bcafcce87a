# SPDX-License-Identifier: GPL-2.0-or-later
"""What is added to a configuration that stands fenced: to one's own alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.config import container_config as config
from migrator.errors.containers import ConfigInvalid


@pytest.mark.parametrize("end", ["", "\n"])
def test_it_stays_when_the_fence_goes(tmp_path: Path, end: str) -> None:
    """And nothing is added to what another migration has fenced."""
    config.fence(tmp_path, f"lxc.uts.name = web{end}", "0badc0de", "it is elsewhere")
    config.add(tmp_path, ["lxc.no_new_privs = 1", "lxc.cap.drop = sys_module"], "0badc0de")
    text = (tmp_path / "config").read_text()
    assert config.fence_of(text) == "0badc0de" and text.count(config.FENCE_BEGIN) == 1
    assert config.unfenced(text).splitlines() == [
        "lxc.uts.name = web", "lxc.no_new_privs = 1", "lxc.cap.drop = sys_module"]
    with pytest.raises(ConfigInvalid, match="not fenced by migration 00000001"):
        config.add(tmp_path, ["lxc.no_new_privs = 0"], "00000001")
    assert (tmp_path / "config").read_text() == text
