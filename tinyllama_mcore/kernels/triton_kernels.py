"""The functions of `plain` as Triton kernels: inputs are read from the GPU's memory once, outputs written once.

Arguments, results and shapes are those of `plain`. Blocks were sized on an H100 (docs/evidence/speed-log.md).
A row of h or v elements is padded to a power of two with masks. Parameters of a kernel have no annotation but
`tl.constexpr`: Triton reads them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinyllama_mcore.kernels.contiguous import takes_contiguous
from tinyllama_mcore.kernels.float8 import Operand
from tinyllama_mcore.kernels.plain import Addends
from tinyllama_mcore.kernels.triton_adamw import adamw
from tinyllama_mcore.kernels.triton_float8 import (
    empty_operand,
    float8_columns,
    float8_rows,
    scale_of,
    store_row,
    targets,
    warps,
)
from tinyllama_mcore.kernels.triton_heads import norm_heads, norm_heads_backward
from tinyllama_mcore.kernels.triton_loss import cross_entropy, cross_entropy_backward

__all__ = [
    "adamw",
    "add_rms_norm", "add_rows", "cross_entropy", "cross_entropy_backward", "float8_columns", "float8_rows",
    "norm_heads", "norm_heads_backward", "rms_norm_backward", "split_rotate", "split_rotate_backward",
    "swiglu", "swiglu_backward",
]  # fmt: skip

_PROGRAMS_OF_A_SUM = 528
"""Programs that share the rows of a norm's weight gradient: four for each multiprocessor of an H100."""
_SWIGLU_BLOCK = 1024
"""Columns of one program of SwiGLU."""


@triton.jit
def _add_rms_norm(
    x, delta, other, weight, total, normed, scales, inv_rms, h, eps,
    addends: tl.constexpr, narrows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < h
    value = tl.load(x + row * h + columns, mask=inside, other=0.0).to(tl.float32)
    if addends:
        added = tl.load(delta + row * h + columns, mask=inside, other=0.0).to(tl.float32)
        if addends == 2:
            added += tl.load(other + row * h + columns, mask=inside, other=0.0).to(tl.float32)
        value += added
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * h + columns, rounded, mask=inside)
        value = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value) / h + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(inv_rms + row, factor)
    store_row(normed, scales, row, h, columns, inside, value * factor * gain, narrows)


@takes_contiguous
def add_rms_norm(
    x: torch.Tensor, deltas: Addends, weight: torch.Tensor, eps: float, *, float8: bool = False
) -> tuple[torch.Tensor, Operand, torch.Tensor]:
    """See `plain.add_rms_norm`."""
    tokens, h = x.shape
    total = torch.empty_like(x) if deltas else x
    normed = empty_operand(x, tokens, h, float8=float8)
    inv_rms = torch.empty(tokens, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(h)
    _add_rms_norm[(tokens,)](
        x,
        *_two(deltas),
        weight,
        total,
        *targets(normed),
        inv_rms,
        h,
        eps,
        addends=len(deltas),
        narrows=float8,
        block=block,
        num_warps=warps(block),
    )
    return total, normed, inv_rms


def _two(addends: Addends) -> tuple[torch.Tensor | None, ...]:
    """Addends as two arguments of a kernel."""
    return (*addends, None, None)[:2]


@triton.jit
def _rms_norm_backward(
    grad_normed, other, total, inv_rms, weight, grad_total, grad_x, normed, sums, tokens, h,
    rows: tl.constexpr, addends: tl.constexpr, adds: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, block)
    inside = columns < h
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    grad_gain = tl.zeros([block], dtype=tl.float32)
    for turn in range(rows):
        row = turn * tl.num_programs(0) + tl.program_id(0)
        place = row.to(tl.int64) * h + columns
        there = columns < tl.where(row < tokens, h, 0)
        value = tl.load(total + place, mask=there, other=0.0).to(tl.float32)
        grad = tl.load(grad_normed + place, mask=there, other=0.0).to(tl.float32)
        if addends == 2:
            grad += tl.load(other + place, mask=there, other=0.0).to(tl.float32)
        factor = tl.load(inv_rms + row, mask=row < tokens, other=0.0)
        unit = value * factor
        grad_unit = grad * gain
        result = (grad_unit - unit * (tl.sum(grad_unit * unit) / h)) * factor
        if adds:
            result += tl.load(grad_total + place, mask=there, other=0.0).to(tl.float32)
        grad_gain += grad * unit
        tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=there)
        tl.store(normed + place, (unit * gain).to(normed.dtype.element_ty), mask=there)
    tl.store(sums + tl.program_id(0) * h + columns, grad_gain, mask=inside)


@takes_contiguous
def rms_norm_backward(
    grad_normed: Addends,
    total: torch.Tensor,
    inv_rms: torch.Tensor,
    weight: torch.Tensor,
    grad_total: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.rms_norm_backward`."""
    tokens, h = total.shape
    programs = min(tokens, _PROGRAMS_OF_A_SUM)
    grad_x, normed = torch.empty_like(total), torch.empty_like(total)
    sums = torch.empty(programs, h, dtype=torch.float32, device=total.device)
    block = triton.next_power_of_2(h)
    _rms_norm_backward[(programs,)](
        *_two(grad_normed),
        total,
        inv_rms,
        weight,
        grad_total,
        grad_x,
        normed,
        sums,
        tokens,
        h,
        rows=triton.cdiv(tokens, programs),
        addends=len(grad_normed),
        adds=grad_total is not None,
        block=block,
        num_warps=2 * warps(block),
    )
    grad_weight = torch.empty(h, dtype=torch.float32, device=total.device)
    _sum_rows[(triton.cdiv(h, 32),)](sums, grad_weight, h, rows=programs, turns=triton.cdiv(programs, 64))
    return grad_x, normed, grad_weight


@triton.jit
def _sum_rows(sums, out, h, rows: tl.constexpr, turns: tl.constexpr):
    """Each program 32 columns, 64 rows at a time."""
    columns = tl.program_id(0) * 32 + tl.arange(0, 32)[None, :]
    total = tl.zeros([64, 32], dtype=tl.float32)
    for turn in range(turns):
        row = turn * 64 + tl.arange(0, 64)[:, None]
        total += tl.load(sums + row * h + columns, mask=columns < tl.where(row < rows, h, 0), other=0.0)
    place = tl.program_id(0) * 32 + tl.arange(0, 32)
    tl.store(out + place, tl.sum(total, axis=0), mask=place < h)


@triton.jit
def _move_heads(
    packed, heads, stride, slot_of_first, slots, cos, sin, direction,
    count: tl.constexpr, ratio: tl.constexpr, half: tl.constexpr, block: tl.constexpr,
    turns: tl.constexpr, packs: tl.constexpr,
):  # fmt: skip
    """One token's heads out of `packed` (or into it, if `packs`), turned on the way if `turns`.

    Of `ratio` heads each, groups begin `slots` heads apart in `packed`, at head `slot_of_first`.
    """
    lane = tl.arange(0, block)
    head, channel = lane // half, lane % half
    inside = head < count
    slot = slot_of_first + (head // ratio) * slots + head % ratio
    inner, outer = packed + slot * (2 * half) + channel, heads + head * stride + channel
    source, target = (outer, inner) if packs else (inner, outer)
    one = tl.load(source, mask=inside, other=0.0)
    other = tl.load(source + half, mask=inside, other=0.0)
    if turns:
        c, s = tl.load(cos + channel), tl.load(sin + channel) * direction
        first, second = one.to(tl.float32), other.to(tl.float32)
        one = (first * c - second * s).to(packed.dtype.element_ty)
        other = (second * c + first * s).to(packed.dtype.element_ty)
    tl.store(target, one, mask=inside)
    tl.store(target + half, other, mask=inside)


@triton.jit
def _split_rotate(
    qkv, query, key, value, cos, sin, s, period, q_batch, q_token, q_head, k_batch, k_token, k_head,
    v_batch, v_token, v_head, groups: tl.constexpr, ratio: tl.constexpr, half: tl.constexpr, packs: tl.constexpr,
    queries_block: tl.constexpr, keys_block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // s, token % s
    packed = qkv + token * (groups * (ratio + 2) * 2 * half)
    cos += (token % period) * half
    sin += (token % period) * half
    direction: tl.constexpr = -1.0 if packs else 1.0
    slots: tl.constexpr = ratio + 2
    _move_heads(packed, query + batch * q_batch + place * q_token, q_head, 0, slots, cos, sin, direction,
                groups * ratio, ratio, half, queries_block, True, packs)  # fmt: skip
    _move_heads(packed, key + batch * k_batch + place * k_token, k_head, ratio, slots, cos, sin, direction,
                groups, 1, half, keys_block, True, packs)  # fmt: skip
    _move_heads(packed, value + batch * v_batch + place * v_token, v_head, ratio + 1, slots, cos, sin, direction,
                groups, 1, half, keys_block, False, packs)  # fmt: skip


def _launch_split_rotate(
    qkv: torch.Tensor, heads: tuple[torch.Tensor, ...], cos: torch.Tensor, sin: torch.Tensor, *, packs: bool
) -> None:
    """`qkv` [b, s, (n + 2 g) d] to `heads`, or back: queries [b, s, n, d], keys and values [b, s, g, d]."""
    query, key, _ = heads
    b, s, n, d = query.shape
    groups, half = key.shape[2], d // 2
    _split_rotate[(b * s,)](
        qkv,
        *heads,
        cos,
        sin,
        s,
        cos.shape[0],
        *(stride for x in heads for stride in x.stride()[:3]),
        groups=groups,
        ratio=n // groups,
        half=half,
        packs=packs,
        queries_block=triton.next_power_of_2(n * half),
        keys_block=triton.next_power_of_2(groups * half),
        num_warps=4,
    )


@takes_contiguous
def split_rotate(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.split_rotate`."""
    b, s, width = qkv.shape
    d = 2 * cos.shape[1]
    query, key, value = (qkv.new_empty(b, s, count, d) for count in (width // d - 2 * groups, groups, groups))
    _launch_split_rotate(qkv, (query, key, value), cos, sin, packs=False)
    return query, key, value


def split_rotate_backward(
    grad_query: torch.Tensor, grad_key: torch.Tensor, grad_value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """See `plain.split_rotate_backward`."""
    b, s, n, d = grad_query.shape
    grad_qkv = grad_query.new_empty(b, s, (n + 2 * grad_key.shape[2]) * d)
    heads = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in (grad_query, grad_key, grad_value))
    _launch_split_rotate(grad_qkv, heads, cos, sin, packs=True)
    return grad_qkv


@triton.jit
def _swiglu(gate_up, gated, scales, f, narrows: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < f
    gate = tl.load(gate_up + row * 2 * f + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * f + f + columns, mask=inside, other=0.0).to(tl.float32)
    store_row(gated, scales, row, f, columns, inside, gate * tl.sigmoid(gate) * up, narrows)


@takes_contiguous
def swiglu(gate_up: torch.Tensor, *, float8: bool = False) -> Operand:
    """See `plain.swiglu`. In float8 a program has a whole row, as its scale asks."""
    tokens, f = gate_up.shape[0], gate_up.shape[1] // 2
    gated = empty_operand(gate_up, tokens, f, float8=float8)
    block = triton.next_power_of_2(f) if float8 else _SWIGLU_BLOCK
    _swiglu[(tokens, triton.cdiv(f, block))](
        gate_up, *targets(gated), f, narrows=float8, block=block, num_warps=8 if float8 else 4
    )
    return gated


@triton.jit
def _swiglu_backward(grad_gated, gate_up, gated, narrow, scales, f, narrows: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < f
    gate = tl.load(gate_up + row * 2 * f + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * f + f + columns, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_gated + row * f + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    grad_up = grad * silu
    tl.store(gated + row * f + columns, (silu * up).to(gated.dtype.element_ty), mask=inside)
    tl.store(gate_up + row * 2 * f + columns, grad_gate.to(gate_up.dtype.element_ty), mask=inside)
    tl.store(gate_up + row * 2 * f + f + columns, grad_up.to(gate_up.dtype.element_ty), mask=inside)
    if narrows:
        scale = scale_of(tl.maximum(tl.max(tl.abs(grad_gate)), tl.max(tl.abs(grad_up))))
        tl.store(scales + row, scale)
        tl.store(narrow + row * 2 * f + columns, (grad_gate / scale).to(narrow.dtype.element_ty), mask=inside)
        tl.store(narrow + row * 2 * f + f + columns, (grad_up / scale).to(narrow.dtype.element_ty), mask=inside)


@takes_contiguous
def swiglu_backward(
    grad_gated: torch.Tensor, gate_up: torch.Tensor, *, float8: bool = False
) -> tuple[torch.Tensor, torch.Tensor, Operand]:
    """See `plain.swiglu_backward`. In float8 a program has a whole row, as its scale asks."""
    gated = torch.empty_like(grad_gated)
    tokens, f = grad_gated.shape
    operand = empty_operand(gate_up, tokens, 2 * f, float8=True) if float8 else gate_up
    block = triton.next_power_of_2(f) if float8 else _SWIGLU_BLOCK
    _swiglu_backward[(tokens, triton.cdiv(f, block))](
        grad_gated, gate_up, gated, *targets(operand), f, narrows=float8, block=block, num_warps=16 if float8 else 4
    )
    return gate_up, gated, operand


@triton.jit
def _add_rows(buffer, rows, ends, order, values, h, block: tl.constexpr):
    """A program for each place in sorted `rows`; the first of equal ones adds them all, eight at a time."""
    begin = tl.program_id(0)
    row = tl.load(rows + begin)
    before = tl.load(rows + begin - 1, mask=begin > 0, other=-1)
    if row != before:
        end = tl.load(ends + begin)
        columns = tl.program_id(1) * block + tl.arange(0, block)[None, :]
        total = tl.zeros([8, block], dtype=tl.float32)
        start = begin
        while start < end:
            place = start + tl.arange(0, 8)[:, None]
            source = tl.load(order + place, mask=place < end, other=0)
            inside = columns < tl.where(place < end, h, 0)
            total += tl.load(values + source * h + columns, mask=inside, other=0.0).to(tl.float32)
            start += 8
        target = buffer + row * h + tl.program_id(1) * block + tl.arange(0, block)
        inside = tl.program_id(1) * block + tl.arange(0, block) < h
        tl.store(target, tl.load(target, mask=inside, other=0.0) + tl.sum(total, axis=0), mask=inside)


@takes_contiguous
def add_rows(buffer: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """See `plain.add_rows`."""
    tokens, h = values.shape
    rows, order = torch.sort(rows, stable=True)
    ends = torch.searchsorted(rows, rows, right=True)
    block = min(512, triton.next_power_of_2(h))
    _add_rows[(tokens, triton.cdiv(h, block))](buffer, rows, ends, order, values, h, block=block, num_warps=4)
