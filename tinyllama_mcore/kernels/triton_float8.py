"""Rows in float8 as Triton writes them: the store that other kernels end in, and casts that stand alone.

Neighbour: `triton_kernels` has the pieces of a layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinyllama_mcore.kernels.contiguous import takes_contiguous
from tinyllama_mcore.kernels.float8 import FORMAT, Float8Rows, Operand


def warps(block: int) -> int:
    """Warps of a program that holds a row of `block` elements: 16 elements a thread, at most 8 warps."""
    return max(1, min(8, block // 512))


@triton.jit
def scale_of(largest):
    """`float8.power_of_two`."""
    bits = (tl.maximum(largest, 1e-12) / 448.0).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def store_row(out, scales, row, width, columns, inside, value, narrows: tl.constexpr):
    """A row of a matrix, as it is or in float8 with its scale."""
    if narrows:
        scale = scale_of(tl.max(tl.abs(value)))
        tl.store(scales + row, scale)
        value = value / scale
    tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=inside)


def empty_operand(like: torch.Tensor, rows: int, columns: int, *, float8: bool) -> Operand:
    """What `store_row` fills."""
    return _empty(like, rows, columns) if float8 else like.new_empty(rows, columns)


def _empty(like: torch.Tensor, rows: int, columns: int) -> Float8Rows:
    return Float8Rows(like.new_empty(rows, columns, dtype=FORMAT), like.new_empty(rows, dtype=torch.float32))


def targets(operand: Operand) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The matrix and the scales that a kernel writes."""
    return operand if isinstance(operand, Float8Rows) else (operand, None)


@triton.jit
def _float8_rows(x, out, scales, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    value = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    store_row(out, scales, row, width, columns, inside, value, True)


def float8_rows(x: torch.Tensor, out: Float8Rows | None = None) -> Float8Rows:
    """See `plain.float8_rows`."""
    rows, width = x.shape
    out = _empty(x, rows, width) if out is None else out
    block = triton.next_power_of_2(width)
    _float8_rows[(rows,)](x.contiguous(), *out, width, block=block, num_warps=warps(block))
    return out


@triton.jit
def _largest_of_columns(x, largest, rows, width, block: tl.constexpr):
    """Adds a block of rows and columns to `largest`."""
    row = tl.program_id(0) * block + tl.arange(0, block)[:, None]
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < rows) & (column[None, :] < width)
    value = tl.load(x + row.to(tl.int64) * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.atomic_max(largest + column, tl.max(tl.abs(value), axis=0), mask=column < width)


@triton.jit
def _float8_columns(x, largest, out, scales, rows, width, block: tl.constexpr):
    row = tl.program_id(0) * block + tl.arange(0, block)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    value = tl.load(x + row[:, None].to(tl.int64) * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.load(largest + column, mask=column < width, other=0.0))
    tl.store(scales + column, scale, mask=column < width)
    place = out + column[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(place, tl.trans((value / scale[None, :]).to(out.dtype.element_ty)), mask=tl.trans(inside))


@takes_contiguous
def float8_columns(x: torch.Tensor, out: Float8Rows | None = None) -> Float8Rows:
    """See `plain.float8_columns`: two passes over the matrix."""
    rows, width = x.shape
    largest = torch.zeros(width, dtype=torch.float32, device=x.device)
    out = _empty(x, width, rows) if out is None else out
    grid = (triton.cdiv(rows, 64), triton.cdiv(width, 64))
    _largest_of_columns[grid](x, largest, rows, width, block=64, num_warps=4)
    _float8_columns[grid](x, largest, *out, rows, width, block=64, num_warps=4)
    return out
