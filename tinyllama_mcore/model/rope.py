"""Rotary positions: one table of cosines and sines for all layers, from Hugging Face's frequencies.

Megatron's scaling for longer contexts knows one kind with fixed numbers. Neighbours: the kernels and `local` rotate by
the table, `context` says which part of a sequence a rank has, `documents` where each begins.
Shapes: s sequence, d head dim; a rank has s/cp.
"""

from __future__ import annotations

import math

import torch

from tinyllama_mcore.config.schema import ModelConfig, RopeScaling
from tinyllama_mcore.model.context import own_chunks


class Rotary:
    """Cosines and sines of every position that the model knows, in one precision."""

    def __init__(self, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Both tables are [max_position_embeddings, d / 2], computed in fp32."""
        positions = torch.arange(model.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(model))
        self._cos, self._sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def angles(self, length: int, *, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [length / size, d / 2] of the positions that context rank `rank` of `size` holds."""
        cos, sin = (own_chunks(table[:length], rank, size, dim=0) for table in (self._cos, self._sin))
        return cos, sin

    def angles_of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [t, d / 2] of t positions."""
        return self._cos[positions], self._sin[positions]


def inverse_frequencies(model: ModelConfig) -> torch.Tensor:
    """Radians a position turns each pair of a head's channels by: fp32 [d / 2] (RoFormer, arXiv 2104.09864, eq. 15)."""
    channels = torch.arange(0, model.head_dim, 2, dtype=torch.float32)
    plain = 1.0 / model.rotary_base ** (channels / model.head_dim)
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
