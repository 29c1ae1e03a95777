"""Matrices in float8 and their products: the recipe that torchao calls `rowwise_with_gw_hp`.

A product a @ b^T takes both matrices in e4m3 (arXiv 2209.05433) with one scale a row, so each row of the result has one
scale of a and one of b, and the sum runs in between. The weight's gradient sums over tokens, whose scales differ: it
stays in bf16. Scales are powers of two, so a number is rounded alike in a row and in a column, and the backward pass
sees the weights that the forward pass multiplied by; torchao (0.18) has one scale for the whole weight there.
Neighbours: `plain` and `triton_kernels` make these matrices on their way; `model.products` multiplies them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FORMAT = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3."""
SMALLEST_ROW = 1e-12
"""A row whose largest element is below this is scaled as if it had that; torchao's EPS."""


class Float8Rows(NamedTuple):
    """A matrix [r, c]: `values` times their row's scale."""

    values: torch.Tensor
    """e4m3 [r, c]."""
    scales: torch.Tensor
    """fp32 [r], powers of two."""


class Float8Weight(NamedTuple):
    """A weight [out, in] as its two products take it."""

    rows: Float8Rows
    """[out, in]: forward."""
    columns: Float8Rows
    """The transpose [in, out]: for the gradient of what it multiplied."""


Operand = torch.Tensor | Float8Rows
"""What a matrix product takes: a matrix as it is, or in float8."""


def power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """The least power of two that brings a row with this largest element, fp32, within e4m3."""
    bits = (largest.clamp(min=SMALLEST_ROW) / LARGEST).view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)  # round the exponent up, drop the mantissa


def narrowed(x: torch.Tensor) -> Float8Rows:
    """A matrix in float8 [r, c] of one in anything wider, by plain torch."""
    wide = x.float()
    scales = power_of_two(wide.abs().amax(dim=-1))
    return Float8Rows((wide / scales[:, None]).to(FORMAT), scales)


def widened(x: Float8Rows) -> torch.Tensor:
    """The numbers that a matrix in float8 stands for, fp32 [r, c]."""
    return x.values.float() * x.scales[:, None]


def product(a: Float8Rows, b: Float8Rows, dtype: torch.dtype) -> torch.Tensor:
    """The product a @ b^T of a [r, c] and b [k, c]: by a GPU's matrix units, or the same numbers multiplied in fp32."""
    if a.values.is_cuda:
        return torch._scaled_mm(
            a.values,
            b.values.t(),
            scale_a=a.scales[:, None],
            scale_b=b.scales[None],
            out_dtype=dtype,
            use_fast_accum=True,
        )
    return (widened(a) @ widened(b).t()).to(dtype)
