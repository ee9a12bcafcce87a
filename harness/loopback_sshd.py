# SPDX-License-Identifier: GPL-2.0-or-later
"""A real sshd on the loopback interface, for the user who runs it, with a home directory of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SSHD = "/usr/sbin/sshd"  # it insists on being started by its full path
KEY_TYPES = ("ed25519", "ecdsa", "rsa")


class Sshd:
    """Started by `with`; `home` is what the client should take for its home directory.

    At first the client knows nothing about the server; `know` tells it about the server's keys. Raises
    FileNotFoundError if openssh-server is not installed.
    """

    def __init__(self, folder: Path, *options: str, host_keys: tuple[str, ...] = KEY_TYPES) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.user = getpass.getuser()
        self.port = 0  # until it is started
        self.host_keys = host_keys
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def destination(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    @property
    def ssh(self) -> list[str]:
        """The `ssh` program, configured to do what the client under test does."""
        own = self.home / ".ssh"
        options = [f"UserKnownHostsFile={own / 'known_hosts'}", f"IdentityFile={own / 'id_ed25519'}", "BatchMode=yes"]
        return ["ssh", "-F", "none", *(word for option in options for word in ("-o", option)),
                "-p", str(self.port), f"{self.user}@127.0.0.1"]  # fmt: skip

    def __enter__(self) -> Sshd:
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        for kind in self.host_keys:
            self.make_host_key(kind)
        keygen(self.home / ".ssh/id_ed25519", "ed25519")
        shutil.copy(self.home / ".ssh/id_ed25519.pub", self.folder / "authorized_keys")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(5):
            self.port = _free_port()
            try:
                self.start()
                return self
            except RuntimeError as error:  # until a port is listened on, any program may get it
                if "in use" not in str(error):
                    raise
        raise RuntimeError("each port that was free was taken by another program")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def make_host_key(self, kind: str) -> None:
        for path in (self.folder / f"host_{kind}", self.folder / f"host_{kind}.pub"):
            path.unlink(missing_ok=True)
        keygen(self.folder / f"host_{kind}", kind)

    def start(self) -> None:
        config = self.folder / "sshd_config"
        config.write_text("\n".join([
            *self._options,  # the first line for a keyword counts
            f"Port {self.port}", "ListenAddress 127.0.0.1", "UsePAM no", "StrictModes no", "PidFile none",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}", "PrintMotd no",
            f"SetEnv HOME={self.home}",  # the shell must not run what the machine's own profile does
            *(f"HostKey {self.folder / f'host_{kind}'}" for kind in self.host_keys), "",
        ]))  # fmt: skip
        settings = subprocess.run([SSHD, "-T", "-f", config], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  check=False).stdout
        if "persourcepenalties" in settings.lower():  # OpenSSH 9.8 shuts out clients that are refused often
            with config.open("a") as file:
                file.write("PerSourcePenalties no\n")
        self._process = subprocess.Popen([SSHD, "-D", "-f", config, "-E", self.folder / "log"], process_group=0)
        while self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        self.stop()
        raise RuntimeError(f"sshd did not start: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """End the listener and, with it, every session."""
        if self._process:
            for child in _descendants(self._process.pid):
                _kill(child)
            _kill(self._process.pid)
            self._process.wait()
            self._process = None

    def know(self, *kinds: str, hashed: bool = False) -> None:
        """Rewrite known_hosts, with the server's keys of those kinds (all, unless told otherwise)."""
        path = self.home / ".ssh/known_hosts"
        public = [(self.folder / f"host_{kind}.pub").read_text().split()[:2] for kind in kinds or self.host_keys]
        path.write_text("".join(f"[127.0.0.1]:{self.port} {' '.join(key)}\n" for key in public))
        if hashed:
            subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)


def keygen(path: Path, kind: str, passphrase: str = "") -> None:
    bits = ["-b", "2048"] if kind == "rsa" else []
    command = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [*_descendants(int(child)), int(child)]
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
