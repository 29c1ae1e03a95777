"""Rotary positions: Megatron-core's embedding with Hugging Face's frequencies, on this rank's part of a sequence.

Megatron-core's own scaling for longer contexts knows one kind with fixed numbers; a recipe's `rope_scaling` says which.
Neighbour: `context` says which part of a sequence a rank has.
"""

from __future__ import annotations

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch.distributed import ProcessGroup

from tinyllama_mcore.config.schema import ModelConfig, RopeScaling
from tinyllama_mcore.model.context import own_chunks


class Rotary(RotaryEmbedding):
    """In the place of GPTModel's own. Megatron's cuts the positions for a context rank with CUDA calls (0.16.1)."""

    def __init__(self, model: ModelConfig, group: ProcessGroup, device: torch.device) -> None:
        """`group` is the context axis."""
        super().__init__(model.kv_channels, rotary_percent=1.0, use_cpu_initialization=True, cp_group=group)
        self.inv_freq = inverse_frequencies(model).to(device)

    def forward(
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: ProcessGroup | None = None
    ) -> torch.Tensor:
        """Angles [s/cp, 1, 1, d] of positions `offset` to `offset + max_seq_len`; whole where documents are packed."""
        angles = self.get_emb(max_seq_len, offset)
        return angles if packed_seq else own_chunks(angles, self.cp_group.rank(), self.cp_group.size(), dim=0)


def inverse_frequencies(model: ModelConfig) -> torch.Tensor:
    """Radians a position turns each pair of a head's channels by: fp32 [d / 2] (RoFormer, arXiv 2104.09864, eq. 15)."""
    channels = torch.arange(0, model.kv_channels, 2, dtype=torch.float32)
    plain = 1.0 / model.rotary_base ** (channels / model.kv_channels)
    if model.rope_scaling is None:
        return plain
    return _SCALINGS[model.rope_scaling.rope_type](plain, model.rope_scaling)


def _linear(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Positions interpolated (arXiv 2306.15595): transformers' `_compute_linear_scaling_rope_parameters`."""
    return plain / scaling.factor


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Slow frequencies interpolated, fast ones kept, a ramp between: transformers' `_compute_llama3_parameters`."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # within the original context
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = ramp.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


_SCALINGS = {"linear": _linear, "llama3": _llama3}
