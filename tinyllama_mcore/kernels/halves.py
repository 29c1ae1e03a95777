"""An fp32 number as two halves of 16 bits: the bf16 weight that the forward pass uses, and the rest.

The rest is the lower half of the fp32 bits. The weight is the upper half, rounded up where the rest begins with a 1, so
that the two say which fp32 number it was: nothing is lost, and a master weight takes 2 bytes beside its bf16 weight
where it took 4. A tie goes away from zero and not to the even neighbour, one number in 131,072 (the same trick as in
Apex's DistributedFusedAdam, `store_param_remainders`).
"""

from __future__ import annotations

import torch

PIECE = 1 << 24
"""Elements that are converted at a time, so that whole numbers in between take little memory."""


def rounded(masters: torch.Tensor) -> torch.Tensor:
    """The bf16 weights of fp32 numbers of any shape."""
    bits = masters.contiguous().view(torch.int32)
    return ((bits + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)


def split(masters: torch.Tensor, weights: torch.Tensor, rest: torch.Tensor) -> None:
    """Write the halves of fp32 numbers [n]: weights bf16 [n], rest int16 [n]."""
    for whole, weight, low in zip(masters.split(PIECE), weights.split(PIECE), rest.split(PIECE), strict=True):
        weight.copy_(rounded(whole))
        low.copy_(whole.view(torch.int32))  # keeps the lower 16 bits


def join(masters: torch.Tensor, weights: torch.Tensor, rest: torch.Tensor) -> None:
    """Write the fp32 numbers [n] that `split` took apart."""
    for whole, weight, low in zip(masters.split(PIECE), weights.split(PIECE), rest.split(PIECE), strict=True):
        upper = weight.view(torch.int16).int() - (low < 0).int()
        whole.view(torch.int32).copy_((upper << 16) | (low.int() & 0xFFFF))
