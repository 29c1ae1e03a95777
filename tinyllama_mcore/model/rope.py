"""Rotary positions: Hugging Face's frequencies, and the rotation of queries and keys in the core attention.

Megatron's attention would make cosines and sines anew for the queries and the keys of each layer and rotate in a dozen
kernels each, and its scaling for longer contexts knows one kind with fixed numbers. Here one table serves all layers.
Neighbours: `attention` rotates by it, `context` says which part of a sequence a rank has, `documents` where they begin.
Shapes: s sequence, b micro-batch, n heads of any kind, d head dim; a rank has s/cp.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tinyllama_mcore.config.schema import ModelConfig, RopeScaling
from tinyllama_mcore.model.context import own_chunks


class Rotary:
    """Cosines and sines of every position that the model knows, in one precision."""

    def __init__(self, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Both tables are [max_position_embeddings, 1, 1, d / 2], computed in fp32."""
        positions = torch.arange(model.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(model))[:, None, None]
        self._cos, self._sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def rotate(self, *heads: torch.Tensor, rank: int = 0, size: int = 1) -> list[torch.Tensor]:
        """Each [s/cp, b, n, d] by the positions that context rank `rank` of `size` holds of a whole sequence."""
        length = heads[0].shape[0] * size
        cos, sin = (own_chunks(table[:length], rank, size, dim=0) for table in (self._cos, self._sin))
        return [_rotated(x, cos, sin) for x in heads]

    def angles(self, length: int, *, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [length / size, d / 2] of the positions that context rank `rank` of `size` holds."""
        cos, sin = (own_chunks(table[:length, 0, 0], rank, size, dim=0) for table in (self._cos, self._sin))
        return cos, sin

    def angles_of(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [t, d / 2] of t positions."""
        return self._cos[positions, 0, 0], self._sin[positions, 0, 0]

    def rotate_each(self, *heads: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """Each [t, n, d] by the position of each of its t tokens."""
        cos, sin = (table[positions].squeeze(1) for table in (self._cos, self._sin))
        return [_rotated(x, cos, sin) for x in heads]


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels i and i + d / 2 of each head turned by its position's angle i (transformers' `apply_rotary_pos_emb`)."""
    if torch.compiler.is_compiling():  # inductor fuses it
        return _turn(x, cos, sin, 1)
    return _Rotation.apply(x, cos, sin)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    turned = (
        torch.addcmul(one * cos, other, sin, value=-direction),
        torch.addcmul(other * cos, one, sin, value=direction),
    )
    return torch.cat(turned, dim=-1)


class _Rotation(torch.autograd.Function):
    """The gradient is turned back: no more is kept than the table, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        cos, sin = ctx.saved_tensors
        return _turn(grad_output, cos, sin, -1), None, None


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
