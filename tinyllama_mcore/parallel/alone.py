"""A job of one process for the length of a block, for tools that run the model outside a launched job.

Neighbours: `launch` joins real jobs; `hf.parity` runs the training model here to compare it with its export.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state

from tinyllama_mcore.config.schema import LayoutConfig
from tinyllama_mcore.parallel import mesh


@contextmanager
def job_of_one() -> Iterator[mesh.Mesh]:
    """Process groups of one rank, undone at the end. No port is opened and no environment variable read or set."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield mesh.build(LayoutConfig(world_size=1), seed=0)
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
