"""`--log-straggler`: which rank computes slowest, and by how much; and which waits longest for its data.

Each rank measures itself (`parallel.own_time`). Where an interval of the log ends, all of them put their two figures
into one table, over gloo and after the step. Neighbours: the loop asks, `metrics` has the answer among an iteration's
figures.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.parallel.own_time import OwnTime


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """What the ranks of an interval of the log say of each other. Means over the interval."""

    rank: int
    """The one whose own passes took longest."""
    host: str
    """Its machine."""
    over_median: float
    """By how much: 0.5 is half as long again as the median of the other ranks."""
    pass_s: float
    """Own seconds of one of its passes: a decoder layer's forward pass, or all of a micro-batch where it is a graph."""
    median_pass_s: float
    """The median of the other ranks'."""
    data_rank: int
    """The one that waited longest for its batches."""
    data_host: str
    """Its machine."""
    data_wait_s: float
    """Seconds that it waited in an iteration."""


def straggler_of(passes: Sequence[float], waits: Sequence[float], hosts: Sequence[str]) -> Straggler | None:
    """Seconds of a pass and of a wait for data, and host, of each rank; None where fewer than two have had passes.

    A rank without passes has NaN.
    """
    known = [rank for rank, seconds in enumerate(passes) if not math.isnan(seconds)]
    if len(known) < 2:
        return None
    slowest = max(known, key=lambda rank: passes[rank])
    middle = median(passes[rank] for rank in known if rank != slowest)
    late = max(range(len(waits)), key=lambda rank: waits[rank])
    return Straggler(
        rank=slowest,
        host=hosts[slowest],
        over_median=passes[slowest] / middle - 1,
        pass_s=passes[slowest],
        median_pass_s=middle,
        data_rank=late,
        data_host=hosts[late],
        data_wait_s=waits[late],
    )


class Stragglers:
    """This rank's figures since the last report, and the table of all. The first iteration, which compiles, is left."""

    def __init__(self, mesh: Mesh) -> None:
        """Collective: ranks tell where they are."""
        self.own_time = OwnTime(mesh.device)
        self._rank = mesh.rank
        self._hosts = [""] * mesh.world_size
        torch.distributed.all_gather_object(self._hosts, socket.gethostname())
        self._is_first = True
        self._clear()

    def after(self, waited: float, *, report: bool) -> Straggler | None:
        """An iteration is over that waited so many seconds for its batch; what there is to report. Then collective."""
        seconds, passes = self.own_time.read()
        if not self._is_first:
            self._seconds += seconds
            self._passes += passes
            self._waited += waited
            self._iterations += 1
        self._is_first = False
        if not report:
            return None
        table = torch.zeros(len(self._hosts), 2, dtype=torch.float64)
        own = self._seconds / self._passes if self._passes else math.nan
        table[self._rank] = torch.tensor([own, self._waited / max(self._iterations, 1)])
        torch.distributed.all_reduce(table)
        self._clear()
        passes, waits = table.T.tolist()
        return straggler_of(passes, waits, self._hosts)

    def _clear(self) -> None:
        self._seconds, self._passes = 0.0, 0
        self._waited, self._iterations = 0.0, 0
