"""Two hosts on one machine: network namespaces with addresses and names of their own, and a cable between them.

What runs in one sees the other only through the cable, which can be cut and slowed down. Each knows both by name, as on
a cluster, and files are shared. Needs root and Linux; `why_not` says what was refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

NAMES = ("here", "there")
"""Of the hosts: the first one is where ranks meet."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Two hosts for the length of a `with` block."""

    def __init__(self, home: Path) -> None:
        """Names and addresses of this process's own, so that two of it do not meet; `home` takes a file."""
        number = os.getpid() % 62_500
        self._names = [f"tl{number}{name}" for name in NAMES]
        self.addresses = [f"10.{number // 250}.{number % 250}.{host}" for host in (1, 2)]
        self.interfaces = [f"tl{number}{end}" for end in "ab"]
        self._known = home / "hosts"
        rows = zip(("127.0.0.1", *self.addresses), ("localhost", *NAMES), strict=True)
        self._known.write_text("".join(f"{address} {name}\n" for address, name in rows))

    def __enter__(self) -> Hosts:
        """Make them. CalledProcessError or FileNotFoundError where that is not allowed."""
        try:
            for name in self._names:
                _ip("netns", "add", name)
            _ip("link", "add", self.interfaces[0], "type", "veth", "peer", "name", self.interfaces[1])
            for name, end, address in zip(self._names, self.interfaces, self.addresses, strict=True):
                _ip("link", "set", end, "netns", name)
                _ip("-n", name, "addr", "add", f"{address}/30", "dev", end)
                _ip("-n", name, "link", "set", end, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove them; the cable goes with them."""
        self.remove()

    def remove(self) -> None:
        """Whatever of them is there."""
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def on(self, host: int, words: Sequence[str]) -> list[str]:
        """A command as it runs on a host, under the host's own name."""
        named = f'mount --bind "$0" /etc/hosts && hostname {NAMES[host]} && exec "$@"'
        entered = ["ip", "netns", "exec", self._names[host], "unshare", "--uts", "--mount"]
        return [*entered, "sh", "-c", named, str(self._known), *words]

    def cut(self) -> None:
        """Pull the cable."""
        _ip("-n", self._names[1], "link", "set", self.interfaces[1], "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("-n", self._names[1], "link", "set", self.interfaces[1], "up")

    def slow_down(self, rate: str | None) -> None:
        """Let no more than `rate` (of tc: "20mbit") through, in either direction; None: as fast as it is."""
        for name, end in zip(self._names, self.interfaces, strict=True):
            shape = ["tc", "-n", name, "qdisc"]
            subprocess.run([*shape, "delete", "dev", end, "root"], check=False, capture_output=True)
            if rate is not None:
                bucket = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "400ms"]
                subprocess.run([*shape, "add", "dev", end, *bucket], check=True, capture_output=True, text=True)


def why_not(home: Path) -> str | None:
    """Why this machine has no such hosts, in the system's words; None where it has."""
    missing = [program for program in ("ip", "tc", "unshare", "hostname", "mount") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)}: not installed"
    try:
        with Hosts(home) as hosts:
            hosts.slow_down("1gbit")
            subprocess.run(hosts.on(1, ["true"]), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


def tails(logs: Path) -> str:
    """The last lines of each log, for a failed assertion."""
    return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(logs.glob("*.log")))
