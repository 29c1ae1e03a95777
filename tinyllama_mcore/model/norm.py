"""The weight of an RMSNorm as Megatron's specs build one. Neighbours: `fused_model` and `local` compute with it."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class Norm(torch.nn.Module):
    """One weight [h], or [d] for the norm of queries or keys."""

    def __init__(self, config: TransformerConfig, hidden_size: int, **_: object) -> None:
        """The signature of Megatron's norm builders; what describes other kinds of norm is not used."""
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
