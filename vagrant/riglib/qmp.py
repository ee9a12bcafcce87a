# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of QEMU's machine protocol (QMP): one JSON object a line, over a Unix socket."""

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from riglib.errors import RigError

LINE = 1 << 20
"""Bytes; no answer that is asked for here comes near it."""


class Qmp:
    """A connection to one QEMU. It serves one client at a time; a second one waits until the first has left."""

    def __init__(self, path: Path, *, timeout: float = 60) -> None:
        """Connect and introduce ourselves; `timeout` in seconds is for this and for each later answer."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rb")
            self._read()  # its greeting
        except OSError as error:
            self._socket.close()
            raise RigError(f"QEMU does not answer at {path}: {error}", hint="vagrant/rig up --vm") from None
        self.execute("qmp_capabilities")

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Return a command's answer. Raises RigError if it fails, or none comes in time."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            while True:
                told = self._read()
                if "error" in told:
                    raise RigError(f"QEMU: {command}: {told['error'].get('desc')}")
                if "return" in told:
                    return told["return"]
        except OSError as error:
            raise RigError(f"QEMU does not answer {command}: {error}", hint="vagrant/rig up --vm") from None

    def save(self, state: Path, *, timeout: float) -> None:
        """Write memory and devices into a file; afterwards the machine stands still. Raises RigError.

        `-incoming` loads it in another QEMU, whose disks have to be what ours are then.
        """
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        quoted = str(state).replace("'", "'\\''")
        self.execute("migrate", uri=f"exec:cat >'{quoted}'")
        deadline = time.monotonic() + timeout
        while (told := self.execute("query-migrate"))["status"] != "completed":
            if told["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise RigError(f"QEMU does not save its state: {told.get('error-desc', told['status'])}")
            time.sleep(0.1)

    def _read(self) -> dict[str, Any]:
        line = self._file.readline(LINE)
        if not line.endswith(b"\n"):
            raise ConnectionError("it has ended the connection")
        told: dict[str, Any] = json.loads(line)
        return told
