"""RMSNorm for the layer spec, right under sequence parallelism with any sharding engine.

Megatron's WrappedTorchNorm refuses sequence parallelism (0.16.1, 0.19.2), and Megatron's own all-reduce of norm
gradients (`finalize_model_grads`) is never run under DeepSpeed. Here that all-reduce is part of autograd.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dim (Zhang and Sennrich 2019), computed in fp32."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        """The signature of Megatron's norm builders; what describes other kinds of norm is not used."""
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.eps = eps
        self.sees_a_part = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [s, b, h], or [s/tp, b, h] under sequence parallelism, to the same shape."""
        weight = self.weight
        if self.sees_a_part:  # each rank saw other rows: sum the weight's gradient over the tensor axis
            weight = copy_to_tensor_model_parallel_region(weight)
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), weight, self.eps)


class HeadNorm(RMSNorm):
    """The norm of queries or keys [s, b, n/tp, d]: tensor-parallel ranks have other heads, and one weight [d]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        """As Megatron's attention builds it; `hidden_size` is the width of a head."""
        super().__init__(config, hidden_size, eps)
        self.sees_a_part = True
