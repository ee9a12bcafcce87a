# SPDX-License-Identifier: GPL-2.0-or-later
"""What a `migrator peer` or `migrator rendezvous` needs, imported once for all programs of `tests.stages.programs`."""

import tunnel.identity.peers
import tunnel.pairing.by_channel
import tunnel.pairing.by_code
import tunnel.pairing.by_text
import tunnel.rendezvous.server  # noqa: F401
