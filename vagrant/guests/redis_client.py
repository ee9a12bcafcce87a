# SPDX-License-Identifier: GPL-2.0-or-later
"""An outside client of a redis guest: increments one key through one TCP connection and checks every answer.

The connection is never reopened: what a migration breaks stays broken. Ends after --seconds, or on SIGTERM or SIGINT,
and then prints what it saw as JSON. Exit status: 0 nothing lost or wrong, 1 otherwise, 2 wrong arguments.
"""

import argparse
import json
import signal
import sys
import time

from resp import Connection


def main() -> int:
    """Ask until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--key", default="counter")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--pause", type=float, default=0.001, metavar="SECONDS", help="before the next request")
    parser.add_argument("--gaps", type=float, metavar="SECONDS", help="list every wait that is longer than this")
    parser.add_argument("--patience", type=float, default=30.0, metavar="SECONDS", help="how long one answer may take")
    options = parser.parse_args()

    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))

    requests = lost = wrong = 0
    longest = longest_at = 0.0
    gaps = []
    problem = None
    began = time.monotonic()
    try:
        server = Connection(options.address, options.port, timeout=options.patience)
        expected = int(server.ask("INCR", options.key) or 0)
        print("connected", file=sys.stderr, flush=True)
        last = time.monotonic()
        while not stopped and time.monotonic() - began < options.seconds:
            requests += 1
            lost += 1
            answer = server.ask("INCR", options.key)
            lost -= 1
            now = time.monotonic()
            if now - last > longest:
                longest, longest_at = now - last, last - began
            if options.gaps is not None and now - last > options.gaps:
                gaps.append({"until": round(time.time(), 3), "ms": round((now - last) * 1000, 1)})
            last = now
            expected += 1
            if answer != expected:
                wrong += 1
                expected = int(answer or 0)
            time.sleep(options.pause)
    except (OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
    told = {
        "requests": requests,
        "lost": lost,
        "wrong": wrong,
        "longest_gap_ms": round(longest * 1000, 1),
        "longest_gap_at_s": round(longest_at, 3),
        "seconds": round(time.monotonic() - began, 3),
        "problem": problem,
    }
    if options.gaps is not None:
        told["gaps"] = gaps
    print(json.dumps(told), flush=True)
    return 1 if problem or lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
