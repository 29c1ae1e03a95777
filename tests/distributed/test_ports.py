"""Two workers of the suite never take one port, and a port that is given is nobody's."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.distributed import ranks

ASK = """
import sys
from tests.distributed import ranks
print(*(ranks.free_port() for _ in range(50)), flush=True)
sys.stdin.read()
"""


def test_processes_that_ask_at_once_get_ports_of_their_own() -> None:
    """Six, fifty ports each, all alive: no port twice."""
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ranks.CHECKOUT
        )
        for _ in range(6)
    ]
    found: list[str] = []
    for process in asked:
        assert process.stdout is not None
        found += process.stdout.readline().split()
    for process in asked:
        process.communicate()
    assert len(found) == len(set(found)) == 300


def test_a_port_that_is_listened_on_is_passed_over() -> None:
    """By whoever does; and no port is one that Linux gives to a connection."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as given:
        assert int(given.read().split()[0]) >= ranks.FIRST_PORT + ranks.SLOTS * ranks.PORTS_OF_A_SLOT
    port = next(port for port in iter(ranks.free_port, None) if (port + 2) % ranks.PORTS_OF_A_SLOT > 1)  # not the last
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port + 1))
        listener.listen()
        assert ranks.free_port() == port + 2
