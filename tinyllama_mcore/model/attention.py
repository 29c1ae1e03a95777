"""The core attention of the layer spec: causal, grouped-query, fused where the device has a kernel for it.

It takes the place of Megatron's DotProductAttention, so that neither Apex nor Transformer Engine is needed, and turns
queries and keys by their positions first.
Neighbours: `rope` turns, `context` cuts a sequence over ranks, `documents` keeps documents apart; the last two call the
kernels of this file. `flash` finds the package flash-attn.
Shapes: s sequence, b micro-batch, n query heads, g query groups, d head dim; a rank holds n/tp, g/tp and s/cp.
"""

from __future__ import annotations

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from tinyllama_mcore.model import context, documents, flash
from tinyllama_mcore.model.context import Kernel
from tinyllama_mcore.model.rope import Rotary

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


class CausalAttention(MegatronModule):
    """Causal grouped-query attention behind the signature of Megatron's `core_attention`."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        backend: str,
        rotary: Rotary,
        pg_collection: ProcessGroupCollection,
        **_: object,
    ) -> None:
        """`backend` and `rotary` come from the spec's params; Megatron's other keywords describe other attention."""
        super().__init__(config=config)
        self.layer_number = layer_number
        self._context = pg_collection.cp
        self._rotary = rotary
        self._attend = kernel(backend)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Query [s/cp, b, n/tp, d], key and value [s/cp, b, g/tp, d] -> context [s/cp, b, n/tp * d].

        Query and key come as linear_qkv made them, without positions. With `packed_seq_params` (of `documents.packed`)
        the micro-batch is one row of documents, and b is left out of every shape. Causal; takes no mask.
        """
        if attention_mask is not None or attn_mask_type not in (None, AttnMaskType.causal, AttnMaskType.padding_causal):
            raise ValueError("CausalAttention takes no attention mask: every token sees all tokens before it")
        if isinstance(packed_seq_params, documents.Documents):
            query, key = self._rotary.rotate_each(query, key, positions=packed_seq_params.positions)
            return documents.attend(self._attend, query, key, value, packed_seq_params).flatten(1)
        rank, size = self._context.rank(), self._context.size()
        query, key = self._rotary.rotate(query, key, rank=rank, size=size)
        if size > 1:
            return context.attend(self._attend, query, key, value, self._context).flatten(2)
        return self._attend(query, key, value).flatten(2)
