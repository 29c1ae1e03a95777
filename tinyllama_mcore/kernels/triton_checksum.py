"""`checksum.plain` as a Triton kernel: one pass over the tensor, as fast as it can be read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192
"""Elements of one program."""


@triton.jit
def _checksum(bits, total, n, odd, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value = tl.load(bits + place, mask=place < n, other=0).to(tl.int64)
    weight = place * odd
    tl.atomic_add(total, tl.sum(value * ((weight ^ (weight >> 32)) | 1)))


def checksum(bits: torch.Tensor, odd: int) -> torch.Tensor:
    """See `checksum.plain`. Whole numbers are added, so the order in which programs end does not matter.

    `odd`: `checksum.ODD`.
    """
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    _checksum[(triton.cdiv(bits.numel(), _BLOCK),)](bits, total, bits.numel(), odd, block=_BLOCK, num_warps=8)
    return total
