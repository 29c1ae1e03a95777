"""The kernels of the core attention: causal, grouped-query, fused where the device has one for it.

Neighbours: `context` cuts a sequence over ranks and `documents` keeps documents apart: both call these kernels. `flash`
finds the package flash-attn.
Shapes: s sequence, b micro-batch, n query heads, g query groups, d head dim; a rank holds n/tp, g/tp and s/cp.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from tinyllama_mcore.model import flash
from tinyllama_mcore.model.context import Kernel

# torch's own kernels in the order they are tried, by --attention-backend. cuDNN is first on a GPU: forward and backward
# took 3.0 ms where torch's flash kernel took 4.8 (one H200, 1.1B model, micro batch 16, torch 2.11).
_TORCH_KERNELS: dict[str, tuple[SDPBackend, ...]] = {
    "auto": (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
    "cudnn": (SDPBackend.CUDNN_ATTENTION,),
    "sdpa": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "unfused": (SDPBackend.MATH,),
}


def _torch_kernel(backends: tuple[SDPBackend, ...]) -> Kernel:
    """`torch.nn.functional.scaled_dot_product_attention` with the first of `backends` that takes the inputs."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n/tp or g/tp, s or t, d]
        whole = query.shape[2] == key.shape[2]
        mask = None if whole else causal_lower_right(query.shape[2], key.shape[2])
        with sdpa_kernel(list(backends), set_priority=True):
            context = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=whole, enable_gqa=query.shape[1] != key.shape[1]
            )  # [b, n/tp, s, d]
        return context.permute(2, 0, 1, 3)

    return attend


def _flash_attn_kernel() -> Kernel:
    """The flash-attn package where it can be imported, else torch's own flash kernel; the start says which."""
    package = flash.package()
    if isinstance(package, str):
        return _torch_kernel((SDPBackend.FLASH_ATTENTION,))

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))  # [b, s or t, n/tp or g/tp, d]
        ordered = torch.are_deterministic_algorithms_enabled()
        return package.flash_attn_func(query, key, value, causal=True, deterministic=ordered).transpose(0, 1)

    return attend


def kernel(backend: str) -> Kernel:
    """The attention kernel that `--attention-backend` names."""
    if backend == "flash":
        return _flash_attn_kernel()
    kernels = _TORCH_KERNELS[backend]
    if torch.are_deterministic_algorithms_enabled():
        kernels = tuple(each for each in kernels if each != SDPBackend.CUDNN_ATTENTION)
    return _torch_kernel(kernels)
