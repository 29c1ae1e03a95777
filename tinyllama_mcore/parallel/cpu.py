"""What Megatron-core takes from CUDA that a machine without a GPU lacks; nothing happens where there is one.

Each stand-in names the upstream place that needs it (megatron-core 0.16.1 and 0.19.2), so that it can be deleted on
the day it is mended there. The pipeline schedules have one more, in `engine.schedule`.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import random as megatron_random


def install_stand_ins() -> None:
    """Make Megatron's layers work on CPU tensors in this process; no-op with a GPU."""
    if torch.cuda.is_available():
        return
    # parameters and buffers are made on `torch.cuda.current_device()` (tensor_parallel/layers.py, rotary embedding)
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda device=None: None
    # activation recompute saves and restores the CUDA generator (tensor_parallel/random.py, CheckpointFunction)
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.empty(0, dtype=torch.uint8)
    megatron_random._set_cuda_rng_state = lambda *args, **kwargs: None


def seed_rng_tracker(seed: int) -> None:
    """Seed Megatron's generator of dropout masks. The recipes have no dropout: it is asked for, never drawn from."""
    if torch.cuda.is_available():
        megatron_random.model_parallel_cuda_manual_seed(seed)
    else:  # a tracker whose fork() does nothing; the embedding forks it under sequence parallelism
        megatron_random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
