# SPDX-License-Identifier: GPL-2.0-or-later
"""A session keyring of its own for what is restored.

When LXC starts a container it gives it one (lxc_setup_keyring in src/lxc/conf.c). At a restore neither LXC nor CRIU
does, and all tasks would have that of whoever restores them: that of a root login, say, with root's own keyring linked
into it. Whoever has a keyring this way may read, change and clear it, whatever their uid and user namespace
(keyrings(7)).
"""

from __future__ import annotations

import errno
import os
import platform

_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280,
           "armv7l": 311, "armv6l": 311, "i686": 288}  # <asm/unistd.h>: the C library has no wrapper for it
_JOIN_SESSION_KEYRING = 1  # <linux/keyctl.h>


def join() -> None:
    """Give the calling thread, and what it starts, a new session keyring: keyctl(2), KEYCTL_JOIN_SESSION_KEYRING.

    To be called as `within` of `run`. Raises OSError, unless there are no keyrings or the system call is denied to us
    (SECCOMP_RET_ERRNO), because then it is denied to what we start as well.
    """
    import ctypes

    number = _KEYCTL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of keyctl(2) is unknown on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(_JOIN_SESSION_KEYRING), None) < 0:
        failed = ctypes.get_errno()
        if failed not in (errno.ENOSYS, errno.EPERM):
            raise OSError(failed, os.strerror(failed), "a session keyring")
