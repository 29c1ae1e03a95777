"""`plain.norm_heads` and its backward pass as Triton kernels: each element is read once and written once.

A program has whole tokens, all heads of a token at a time: [heads, d] padded to powers of two with masks. Neighbour:
`triton_kernels` has the other functions of `plain`, and moves heads the same way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinyllama_mcore.kernels.contiguous import takes_contiguous

_PROGRAMS_OF_A_SUM = 528
"""Programs that share the tokens of a weight's gradient: four for each multiprocessor of an H100."""


@triton.jit
def _places(slots, ratio: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr):
    """Of a token of so many slots: where each channel stands, which are there, which slots hold queries and keys."""
    slot, channel = tl.arange(0, rows)[:, None], tl.arange(0, block)[None, :]
    inside = channel < tl.where(slot < slots, width, 0)
    in_group = slot % (ratio + 2)
    return slot * width + channel, inside, in_group < ratio, in_group == ratio


@triton.jit
def _gain(query_weight, key_weight, is_query, width: tl.constexpr, block: tl.constexpr):
    """The weight of each slot and channel [rows, block]; what it is for values is not used."""
    channel = tl.arange(0, block)
    there = channel < width
    query = tl.load(query_weight + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    key = tl.load(key_weight + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    return tl.where(is_query, query, key)


@triton.jit
def _norm_heads(
    qkv, query_weight, key_weight, normed, inv_rms, eps,
    slots: tl.constexpr, ratio: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    place, inside, is_query, is_key = _places(slots, ratio, width, rows, block)
    value = tl.load(qkv + token * (slots * width) + place, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=1) / width + eps)
    scaled = wide * factor[:, None] * _gain(query_weight, key_weight, is_query, width, block)
    result = tl.where(is_query | is_key, scaled.to(normed.dtype.element_ty), value)
    tl.store(normed + token * (slots * width) + place, result, mask=inside)
    slot = tl.arange(0, rows)
    tl.store(inv_rms + token * slots + slot, factor, mask=slot < slots)


@takes_contiguous
def norm_heads(
    qkv: torch.Tensor, query_weight: torch.Tensor, key_weight: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `plain.norm_heads`."""
    sizes = _sizes(qkv, query_weight, groups)
    tokens, normed = qkv.shape[0] * qkv.shape[1], torch.empty_like(qkv)
    inv_rms = torch.empty(*qkv.shape[:2], sizes["slots"], dtype=torch.float32, device=qkv.device)
    _norm_heads[(tokens,)](qkv, query_weight, key_weight, normed, inv_rms, eps, **sizes, num_warps=_warps(sizes))
    return normed, inv_rms


@triton.jit
def _norm_heads_backward(
    grad_normed, qkv, inv_rms, query_weight, key_weight, sums, tokens,
    slots: tl.constexpr, ratio: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
    turns: tl.constexpr,
):  # fmt: skip
    _whole, _inside, is_query, is_key = _places(slots, ratio, width, rows, block)
    gain = _gain(query_weight, key_weight, is_query, width, block)
    slot = tl.arange(0, rows)
    grad_query_weight, grad_key_weight = tl.zeros([block], dtype=tl.float32), tl.zeros([block], dtype=tl.float32)
    for turn in range(turns):
        token = turn * tl.num_programs(0) + tl.program_id(0)
        held = tl.where(token < tokens, slots, 0)  # none of a token that is not there
        place, there, _queries, _keys = _places(held, ratio, width, rows, block)
        own = token.to(tl.int64) * (slots * width) + place
        value = tl.load(qkv + own, mask=there, other=0.0).to(tl.float32)
        given = tl.load(grad_normed + own, mask=there, other=0.0)
        grad = given.to(tl.float32)
        factor = tl.load(inv_rms + token.to(tl.int64) * slots + slot, mask=slot < held, other=0.0)
        unit = value * factor[:, None]
        grad_unit = grad * gain
        grad_head = (grad_unit - unit * (tl.sum(grad_unit * unit, axis=1) / width)[:, None]) * factor[:, None]
        result = tl.where(is_query | is_key, grad_head.to(grad_normed.dtype.element_ty), given)
        tl.store(grad_normed + own, result, mask=there)
        grad_gain = grad * unit
        grad_query_weight += tl.sum(tl.where(is_query, grad_gain, 0.0), axis=0)
        grad_key_weight += tl.sum(tl.where(is_key, grad_gain, 0.0), axis=0)
    channel = tl.arange(0, block)
    first = sums + tl.program_id(0) * (2 * width) + channel
    tl.store(first, grad_query_weight, mask=channel < width)
    tl.store(first + width, grad_key_weight, mask=channel < width)


@takes_contiguous
def norm_heads_backward(
    grad_normed: torch.Tensor,
    qkv: torch.Tensor,
    inv_rms: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.norm_heads_backward`."""
    sizes = _sizes(qkv, query_weight, groups)
    tokens, width = qkv.shape[0] * qkv.shape[1], sizes["width"]
    programs = min(tokens, _PROGRAMS_OF_A_SUM)
    sums = torch.empty(programs, 2, width, dtype=torch.float32, device=qkv.device)
    _norm_heads_backward[(programs,)](
        grad_normed,
        qkv,
        inv_rms,
        query_weight,
        key_weight,
        sums,
        tokens,
        **sizes,
        turns=triton.cdiv(tokens, programs),
        num_warps=_warps(sizes),
    )
    grad_query_weight, grad_key_weight = sums.sum(dim=0)
    return grad_normed, grad_query_weight, grad_key_weight


def _warps(sizes: dict[str, int]) -> int:
    """Warps of a program: 1,024 elements each, as long as there may be more."""
    return min(16, max(4, sizes["rows"] * sizes["block"] // 1024))


def _sizes(qkv: torch.Tensor, query_weight: torch.Tensor, groups: int) -> dict[str, int]:
    """What every kernel here is compiled for."""
    width = query_weight.shape[0]
    slots = qkv.shape[2] // width
    return {
        "slots": slots,
        "ratio": slots // groups - 2,
        "width": width,
        "rows": triton.next_power_of_2(slots),
        "block": triton.next_power_of_2(width),
    }
