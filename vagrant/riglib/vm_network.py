# SPDX-License-Identifier: GPL-2.0-or-later
"""The network of the rig with NATs, for one virtual machine of it: a script that sets it up, for provision.sh.

    python3 -m riglib.vm_network HOST NAT-A NAT-B

Addresses, routes and rules are those of `network`, with two differences. A machine has one more card, through which
Vagrant reaches it, and it the internet: so a router is the way to the rig's outside alone. And machines must not reach
each other through that card, past all NATs.
"""

import sys

from riglib import nat, network
from riglib.errors import RigError

CARD = "rig0"
"""What `network` calls eth0, a name that Vagrant's card may have."""

SCRIPT = """set -eu
vagrants=$(ip -4 route show default | sed -n '1s/.* dev \\([^ ]*\\).*/\\1/p')
gateway=$(ip -4 route show default | sed -n '1s/.* via \\([^ ]*\\).*/\\1/p')
neighbours=$(ip -4 route show dev "$vagrants" proto kernel | sed -n '1s/ .*//p')
sysctl -qw net.ipv4.ip_forward=1 "net.ipv6.conf.$vagrants.disable_ipv6=1"
{bridge}ip -batch - <<LINES
{lines}
LINES
nft -f - <<RULES
{rules}
table ip apart
delete table ip apart
table ip apart {{
    chain out {{
        type filter hook output priority filter
        oifname "$vagrants" ip daddr $gateway accept
        oifname "$vagrants" ip daddr $neighbours drop
    }}
}}
RULES
"""


def script(host: str, nat_a: nat.Nat, nat_b: nat.Nat) -> str:
    """Return the shell script that makes a machine's network, once its cards have their names. Safe to repeat."""
    for kind in (nat_a.kind, nat_b.kind):
        if kind in ("none", "double"):
            raise RigError(f"virtual machines have one router each, which '{kind}' is not for", hint="vagrant/rig up")
    made = network.plan(nat_a, nat_b)
    if host not in made.lines or host == "switch":
        raise RigError(f"there is no machine '{host}'")
    lines = [adapted for line in made.lines[host] for adapted in repeatable(line)]
    bridge = "".join(f"[ -e /sys/class/net/lxcbr0 ] || ip {line}\n" for line in lines if line.startswith("link add"))
    rules = made.rules.get(host, "").replace('"eth0"', f'"{CARD}"')
    # The machine may have rules of others', migrator's own among them.
    rules = rules.replace("flush ruleset", "table ip rig\ndelete table ip rig").strip()
    rest = "\n".join(line for line in lines if not line.startswith("link add"))
    return SCRIPT.format(bridge=bridge, lines=rest, rules=rules)


def repeatable(line: str) -> list[str]:
    """Return what becomes of an ip(8) line of the plan's on a virtual machine."""
    words = [CARD if word == "eth0" else word for word in line.split()]
    if words[:3] == ["route", "add", "default"]:
        return [" ".join(["route", "replace", outside, *words[3:]]) for outside in network.WAN_NETWORKS]
    if words[1] == "add" and words[0] in ("address", "route"):
        words[1] = "replace"
    return [" ".join(words)]


def main(words: list[str]) -> int:
    """Print the script."""
    try:
        host, nat_a, nat_b = words
        print(script(host, nat.parse(nat_a), nat.parse(nat_b)), end="")
    except ValueError:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    except RigError as error:
        print(f"rig: error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
