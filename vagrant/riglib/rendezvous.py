# SPDX-License-Identifier: GPL-2.0-or-later
"""The rendezvous through which the two hosts can pair and meet: `migrator rendezvous` on the host of that name."""

import json

from riglib.hosts import LXC_HOSTS
from riglib.run import inside

HOST = "rendezvous"
CONFIG = "/etc/migrator/tunnel.conf"

SERVE = """set -e
restart=$1
shift
pid=$(cat /run/rendezvous.pid 2>/dev/null || true)
if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
    [ "$restart" = yes ] || exec cat /run/rendezvous.json
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
fi
mkdir -p /var/lib/migrator-rendezvous
rm -f /run/rendezvous.json
listen=
for address; do listen="$listen --listen $address:443"; done
# The files keep the certificate, and so its fingerprint, the same when it is started anew.
setsid migrator rendezvous --json --relay $listen --certificate /var/lib/migrator-rendezvous/certificate.pem \\
    --key /var/lib/migrator-rendezvous/key.pem </dev/null >/run/rendezvous.json 2>/var/log/rendezvous.log &
pid=$!
echo $pid >/run/rendezvous.pid
until [ -s /run/rendezvous.json ]; do
    kill -0 $pid 2>/dev/null || { cat /var/log/rendezvous.log >&2; exit 1; }
    sleep 0.05
done
cat /run/rendezvous.json
"""
"""Starts the service unless it runs, or restarts it if the first argument is `yes`; prints what it reports."""


def serve(addresses: list[str], *, restart: bool) -> None:
    """Run the service at these addresses of its host, and tell hosta and hostb where it is."""
    told = inside(HOST, ["sh", "-c", SERVE, "sh", "yes" if restart else "no", *addresses])
    config = f"[rendezvous]\nservers = {json.loads(told)['url']}\n"
    for host in LXC_HOSTS:
        inside(host, ["sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", CONFIG], text=config)
