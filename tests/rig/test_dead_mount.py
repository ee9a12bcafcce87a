# SPDX-License-Identifier: GPL-2.0-or-later
"""A process whose root lies on a mount that might not answer. Needs root, but not the two hosts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
LIMIT = 120.0  # seconds

# In a mount namespace of its own: FUSE as in <linux/fuse.h>, by hand. Its server answers FUSE_INIT, and that it knows
# no FUSE_ACCESS, so that one can make it one's root. Whatever else it is asked it tells, and fails: were it silent, who
# asks would wait for ever, and no signal would end him.
SCRIPT = '''
import contextlib, ctypes, errno, os, struct, sys, threading
from pathlib import Path
from migrator.host import lxc, roots
from migrator.record.migration_paths import Layout
from stages.steps import settling
INIT, ACCESS, WITHOUT_ANSWER = 26, 34, (2, 36, 42)
target, libc = sys.argv[1], ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
assert libc.mount(b"quiet", target.encode(), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())

def answer(unique, error, body=b""):
    os.write(fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

def serve():
    while True:
        _, op, unique = struct.unpack_from("<IIQ", os.read(fd, 1 << 17))
        if op == INIT:
            answer(unique, 0, struct.pack("<4I2H2I2H", 7, 31, 0, 0, 0, 0, 4096, 0, 0, 0) + bytes(28))
        elif op == ACCESS:
            answer(unique, errno.ENOSYS)
        else:
            print("asked", flush=True)
            if op not in WITHOUT_ANSWER:
                answer(unique, errno.EIO)

threading.Thread(target=serve, daemon=True).start()
(ready, is_ready), (lives, is_alive) = os.pipe(), os.pipe()
if not (child := os.fork()):
    os.close(is_alive)
    os.chroot(target)
    os.write(is_ready, b".")
    os.read(lives, 1)  # as long as its parent lives
    os._exit(0)
os.read(ready, 1)
if sys.argv[2] == "stat":
    with contextlib.suppress(OSError):
        os.stat(f"/proc/{child}/root")
else:
    assert child in lxc.payload_processes("none")
    assert not lxc.lives_in("none", Path("/tmp")) and not lxc.runs_in("none", Path("/tmp"))
    assert not settling.lives_on(Layout(Path("/tmp"), "none", "0badc0de"))
    with roots.on_btrfs(child) as root:
        assert root is None
print("done", flush=True)
os._exit(0)
'''


@pytest.mark.parametrize(("how", "said"), [("as migrator does", "done\n"), ("stat", "asked\ndone\n")])
def test_it_is_not_asked(tmp_path: Path, how: str, said: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SCRIPT, str(tmp_path), how], cwd=TREE,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stdout == said, done.stderr
