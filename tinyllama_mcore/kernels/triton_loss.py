"""The loss of `plain` as Triton kernels: a program has the logits of one token. Neighbour: `triton_kernels`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinyllama_mcore.kernels.contiguous import takes_contiguous

_VOCABULARY_BLOCK = 4096
"""Columns of the logits that one program looks at together."""


@triton.jit
def _cross_entropy(logits, labels, log_sum, target, v, first, columns: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full([block], float("-inf"), dtype=tl.float32)
    total = tl.zeros([block], dtype=tl.float32)
    for start in range(0, columns, block):
        place = start + tl.arange(0, block)
        value = tl.load(logits + row * v + place, mask=place < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, value)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - base) + tl.exp(value - base)
        largest = higher
    most = tl.max(largest)
    base = tl.where(most == float("-inf"), 0.0, most)
    tl.store(log_sum + row, tl.log(tl.sum(total * tl.exp(largest - base))) + base)
    own = tl.load(labels + row) - first
    own = tl.where(own < columns, own, -1)
    tl.store(target + row, tl.load(logits + row * v + own, mask=own >= 0, other=0.0).to(tl.float32))


@takes_contiguous
def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, first: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `plain.cross_entropy`."""
    tokens, v = logits.shape
    log_sum, target = (torch.empty(tokens, dtype=torch.float32, device=logits.device) for _ in range(2))
    _cross_entropy[(tokens,)](logits, labels, log_sum, target, v, first, columns, block=_VOCABULARY_BLOCK, num_warps=8)
    return log_sum, target


@triton.jit
def _cross_entropy_backward(logits, labels, log_sum, grad_loss, v, first, columns, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    value = tl.load(logits + row * v + place, mask=place < columns, other=float("-inf")).to(tl.float32)
    grad = tl.exp(value - tl.load(log_sum + row))
    grad = tl.where(place == tl.load(labels + row) - first, grad - 1.0, grad)
    grad = tl.where(place < columns, grad, 0.0) * tl.load(grad_loss + row)
    tl.store(logits + row * v + place, grad.to(logits.dtype.element_ty), mask=place < v)


@takes_contiguous
def cross_entropy_backward(
    logits: torch.Tensor, labels: torch.Tensor, log_sum: torch.Tensor, grad_loss: torch.Tensor, first: int, columns: int
) -> torch.Tensor:
    """See `plain.cross_entropy_backward`."""
    tokens, v = logits.shape
    grid = (tokens, triton.cdiv(v, _VOCABULARY_BLOCK))
    _cross_entropy_backward[grid](
        logits, labels, log_sum, grad_loss, v, first, columns, block=_VOCABULARY_BLOCK, num_warps=8
    )
    return logits
