# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in a rig's host: writes down UDP datagrams as they arrive, or sends those that were written down.

    udp_replayer.py capture INTERFACE PORT FILE     to this port, until SIGTERM; FILE is JSON, a list of hex strings
    udp_replayer.py send FILE ADDRESS PORT [OWN]    from port OWN, which may be in use; prints how many answers came
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
import time
from pathlib import Path

ETH_P_IP = 0x0800


def capture(interface: str, port: int, file: str) -> None:
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    found = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as sniffer:
        sniffer.bind((interface, ETH_P_IP))
        sniffer.settimeout(0.05)
        print("captures", flush=True)
        while not ended:
            try:
                packet, where = sniffer.recvfrom(65536)
            except TimeoutError:
                continue
            header = (packet[0] & 15) * 4
            if where[2] == socket.PACKET_HOST and packet[9] == socket.IPPROTO_UDP:  # to this host, and not by it
                _, to, length = struct.unpack_from("!HHH", packet, header)
                if to == port:
                    found.append(packet[header + 8 : header + length].hex())
    Path(file).write_text(json.dumps(found))


def send(file: str, address: str, port: int, own: int = 0) -> None:
    datagrams = [bytes.fromhex(text) for text in json.loads(Path(file).read_text())]
    kind, protocol = (socket.SOCK_RAW, socket.IPPROTO_UDP) if own else (socket.SOCK_DGRAM, 0)
    answers = 0
    with socket.socket(socket.AF_INET, kind, protocol) as sender:
        sender.setblocking(False)
        for data in datagrams:
            header = struct.pack("!HHHH", own, port, 8 + len(data), 0) if own else b""
            sender.sendto(header + data, (address, 0 if own else port))
            time.sleep(0.002)
        time.sleep(0.3)
        while not own:
            try:
                sender.recv(65536)
            except BlockingIOError:
                break
            answers += 1
    print(answers)


if __name__ == "__main__":
    if sys.argv[1] == "capture":
        capture(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        send(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
