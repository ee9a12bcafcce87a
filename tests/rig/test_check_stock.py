# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` says of containers and hosts as a distribution sets them up, where only a real system can tell."""

from __future__ import annotations

import json

from tests.migrator.lxc_configs import CASES
from tests.rig.harness import Rig

# Each case in a folder of its own, as container `c`, and in a process of its own: some make liblxc crash.
_ASK_LXC = """
import json, os, pathlib, sys, lxc
found = {}
for number, (name, files) in enumerate(json.load(sys.stdin).items()):
    folder = pathlib.Path(f"/tmp/lxc-configs/{number}/c")
    for file, text in files.items():
        path = folder / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            path.write_bytes(text.replace("ROOT", str(folder)).encode())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, lxc.Container("c", str(folder.parent)).get_config_item("lxc.tty.max").encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(pid, 0)
    found[name] = int(said) if said else None
print(json.dumps(found))
"""


def test_lxc_takes_and_refuses_the_configurations_that_we_say(rig: Rig) -> None:
    try:
        told = rig.exec("hosta", "python3", "-c", _ASK_LXC,
                        input=json.dumps({name: case.files for name, case in CASES.items()})).json
    finally:
        rig.exec("hosta", "rm", "-rf", "/tmp/lxc-configs")
    assert told == {name: case.terminals for name, case in CASES.items()}
