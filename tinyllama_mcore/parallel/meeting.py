"""Where the processes of a job tell each other what they find, before any collective: a store of keys and values.

It works where collectives do not, so a process whose network is wrong can still say so. Neighbours: `launch` makes the
process group, at the same place; the room `preflight` asks and judges.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from tinyllama_mcore.config.errors import RunFailed
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.launchers import Launch

HERE = "127.0.0.1"
"""Where a job of one process meets itself."""


class Meeting:
    """The job's processes, by what each has told: JSON values under names."""

    def __init__(self, place: Launch, patience_s: float) -> None:
        """Come to MASTER_ADDR and MASTER_PORT; the first rank listens there, unless torchrun does.

        Raises:
            RunFailed: nobody listens there, or the port is another program's.
        """
        from torch.distributed import PrefixStore, TCPStore

        self.place, self._patience = place, timedelta(seconds=patience_s)
        alone = place.world_size == 1
        host = HERE if alone else os.environ["MASTER_ADDR"]
        port = 0 if alone else int(os.environ["MASTER_PORT"])
        self.address = "one process" if alone else f"{host}:{port}"
        listens = place.rank == 0 and not launch.is_launchers_store()
        try:
            store = TCPStore(
                host_name=host,
                port=port,
                is_master=alone or listens,
                timeout=self._patience,
                wait_for_workers=False,
                multi_tenant=not alone,
            )
        except RuntimeError as error:
            tried = "listen at" if listens else "reach"
            raise RunFailed(
                f"rank {place.rank} ({socket.gethostname()}) could not {tried} MASTER_ADDR:MASTER_PORT, "
                f"{self.address}, within {patience_s:g} s: {str(error).splitlines()[0]}"
            ) from error
        attempt = PrefixStore(f"meetings_{launch.attempt_of_store()}", store)
        self._store = PrefixStore(f"meeting_{attempt.add(f'of_rank_{place.rank}', 1)}", attempt)

    def tell(self, name: str, value: object) -> None:
        """Say something under a name that nobody has used."""
        self._store.set(name, json.dumps(value))

    def hear(self, name: str, patience_s: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """What somebody says under a name, waited for.

        Raises:
            TimeoutError: nobody did.
        """
        patience = self._patience if patience_s is None else timedelta(seconds=patience_s)
        try:
            self._store.wait([name], patience)
            return json.loads(self._store.get(name))
        except RuntimeError as error:
            raise TimeoutError(f"no word of {name} within {patience.total_seconds():g} s") from error

    def hear_all(self, name: str, ranks: Iterable[int], patience_s: float | None = None) -> Iterator[tuple[int, Any]]:
        """What each rank says under a name, as (rank, value); a rank that says nothing is left out.

        One patience holds for all: the ranks after the first silent one are given a second each.
        """
        for rank in ranks:
            try:
                yield rank, self.hear(f"{name}/{rank}", patience_s)
            except TimeoutError:
                patience_s = 1.0

    def tell_of_this(self, name: str, value: object) -> None:
        """Say something as this rank, for `hear_all`."""
        self.tell(f"{name}/{self.place.rank}", value)


def network_interface() -> str | None:
    """Name of the interface that gloo is told to use; None: that of the host's own name."""
    return os.environ.get("GLOO_SOCKET_IFNAME")


def own_addresses() -> list[str]:
    """What this host's own name resolves to: where gloo listens without `network_interface`. [] where to nothing."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(each[4][0]) for each in found})
