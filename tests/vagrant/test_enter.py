# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes a command in a host."""

from __future__ import annotations

import signal
import subprocess
import sys

from harness.rig import VAGRANT

INTERRUPTED = """
import os, signal, sys
from riglib import enter
signal.pthread_sigmask(signal.SIG_BLOCK, enter.FORWARDED)
os.kill(os.getpid(), signal.SIGINT)
enter.run_child(["sleep", "60"], enter.ENVIRONMENT)
"""


def test_a_signal_that_comes_before_the_command_is_the_commands() -> None:
    """Not `rig exec` fails then: the command is interrupted, as it would be a moment later."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], env={"PYTHONPATH": str(VAGRANT)}, timeout=60,
                          check=False)
    assert done.returncode == -signal.SIGINT
