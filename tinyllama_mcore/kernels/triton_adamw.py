"""AdamW over halves of master weights in one pass over memory. Neighbour: `halves` says what the halves are."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tinyllama_mcore.kernels.contiguous import takes_contiguous

_BLOCK = 2048
"""Elements of one program."""


@triton.jit
def _adamw(
    weights, rest, first, second, grad, scalars, share1, beta2, share2, eps, n, block: tl.constexpr
):  # fmt: skip
    if tl.load(scalars + 4) != 0.0:
        place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = place < n
        low = tl.load(rest + place, mask=inside, other=0).to(tl.int32)
        upper = tl.load(weights + place, mask=inside, other=0.0).to(tl.int16, bitcast=True).to(tl.int32)
        upper -= tl.where(low < 0, 1, 0)
        master = ((upper << 16) | (low & 0xFFFF)).to(tl.float32, bitcast=True)
        g = tl.load(grad + place, mask=inside, other=0.0) / tl.load(scalars)
        m = tl.load(first + place, mask=inside, other=0.0)
        v = tl.load(second + place, mask=inside, other=0.0)
        m += share1 * (g - m)
        v = beta2 * v + share2 * g * g
        master = master * tl.load(scalars + 1)
        master -= tl.load(scalars + 2) * m / (tl.sqrt(v) / tl.load(scalars + 3) + eps)
        bits = master.to(tl.int32, bitcast=True)
        weight = ((bits + 0x8000) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(weights + place, weight, mask=inside)
        tl.store(rest + place, bits.to(tl.int16), mask=inside)
        tl.store(first + place, m, mask=inside)
        tl.store(second + place, v, mask=inside)


@takes_contiguous
def adamw(
    weights: torch.Tensor,
    rest: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    grad: torch.Tensor,
    scalars: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """See `plain.adamw`."""
    n, (beta1, beta2) = weights.numel(), betas
    shares = (1 - beta1, beta2, 1 - beta2)  # here, in fp64: a kernel gets fp32, where 1 - 0.999 loses 1.3e-5 of itself
    _adamw[(triton.cdiv(n, _BLOCK),)](
        weights, rest, *moments, grad, scalars, *shares, eps, n, block=_BLOCK, num_warps=4
    )
