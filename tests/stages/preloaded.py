# SPDX-License-Identifier: GPL-2.0-or-later
"""What a `migrator peer` or `migrator rendezvous` needs, imported once for all programs of `tests.stages.programs`."""

import tunnel.exchange
import tunnel.mailbox
import tunnel.offline
import tunnel.peers
import tunnel.rendezvous.server  # noqa: F401
