"""Two GPUs that send each other matrices: every number arrives, whoever is late, in a graph too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.distributed import ranks

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

SHAPE, TRANSFERS, PASSES = (4096, 2048), 5, 40
LATE = 3_000_000
"""Cycles, about two milliseconds, by which a rank is late now and then."""


def _swaps() -> None:
    """An odd number of transfers a pass, so that a pass ends with the slot that it begins with."""
    from tinyllama_mcore.parallel import launch
    from tinyllama_mcore.parallel.exchange import Exchange

    launch.start_process_group(launch.this_process())
    rank = torch.distributed.get_rank()
    axis = SimpleNamespace(size=2, rank=rank, group=torch.distributed.new_group([0, 1]))
    exchange = Exchange(SimpleNamespace(device=torch.device("cuda", rank), tensor=axis))
    number, own = torch.zeros((), device="cuda"), torch.empty(SHAPE, device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")

    def a_pass() -> None:
        """Transfer i of pass n has n * TRANSFERS + i in every place, and half of that on the other rank."""
        exchange.begin_pass()
        for turn in range(TRANSFERS):
            value = number * TRANSFERS + turn
            transfer = exchange.begin(own)
            for half in (slice(0, SHAPE[0] // 2), slice(SHAPE[0] // 2, SHAPE[0])):
                own[half] = value * (1 + rank)
                transfer.send(half, last=half.stop == SHAPE[0])
            wrong.add_((transfer.received() != value * (2 - rank)).sum())
        number.add_(1)

    a_pass()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        a_pass()
    for turn in range(PASSES):
        if turn % 3 == rank:
            torch.cuda._sleep(LATE)
        graph.replay() if turn % 4 else a_pass()
    assert int(wrong) == 0
    torch.distributed.barrier()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_what_is_sent_arrives(tmp_path: Path) -> None:
    """Also where a rank is late by more than a pass takes."""
    assert ranks.run(2, _swaps, logs=tmp_path) == [0, 0], ranks._tails(tmp_path)
