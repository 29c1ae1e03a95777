"""A run that gives the same bits each time it is made: torch's deterministic algorithms, for the length of a run.

Without it a GPU's attention adds gradients up in the order in which its blocks end (docs/evidence/layouts.md).
Neighbours: `model.attention` leaves cuDNN out, `config.swiglu` quack.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""What torch asks for before it lets cuBLAS multiply deterministically; read where a process first multiplies."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Torch's deterministic algorithms within a block, if they are wanted. Begin before anything is computed."""
    if not wanted:
        yield
        return
    import torch

    settings: Any = torch.utils.deterministic
    before, filled = os.environ.get(WORKSPACE), settings.fill_uninitialized_memory
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # it would fill every buffer with NaN first
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = filled
        if before is None:
            os.environ.pop(WORKSPACE, None)
