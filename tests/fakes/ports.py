"""Ports for servers that tests start, kill and start again."""

from __future__ import annotations

import random
import socket

# Below the ports that Linux gives to outgoing connections (32768 and up, ip_local_port_range): while
# a killed server is down, the connection of another test may be given its port, or a client that
# tries it again and again may even be connected to itself.
# Ray's workers listen on 10002 to 19999.
_FIRST, _LAST = 20_000, 32_767


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens, and which no outgoing connection will take."""
    # not seeded: processes of one test run draw different ports
    chance = random.SystemRandom()
    while True:
        port = chance.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
