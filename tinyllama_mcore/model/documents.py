"""Documents kept apart: a micro-batch as one row of documents, each attending to itself, positions from 0 in each.

Megatron's packed ("thd") form: the batch dim is folded into the sequence, and `PackedSeqParams` says where documents
begin. Neighbour: `sampling.loader` finds the beginnings.
Shapes: t tokens of the micro-batch (b s), n query heads, g query groups, d head dim.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from tinyllama_mcore.model import flash
from tinyllama_mcore.model.context import Kernel


@dataclass
class Documents(PackedSeqParams):
    """A row of documents, as Megatron's layers pass it on to the core attention."""

    positions: torch.Tensor = field(kw_only=True)
    """Position of each token in its document, from 0: int64 [t]."""


def packed(starts: torch.Tensor, device: torch.device | str = "cpu") -> Documents:
    """A row of documents on `device`, which begin at `starts`: int32 [documents + 1] on the host, the last being t."""
    lengths = starts.diff()
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    longest = int(lengths.max())
    begins = starts.to(device)
    return Documents(
        qkv_format="thd",
        cu_seqlens_q=begins,
        cu_seqlens_kv=begins,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        positions=positions.to(device),
    )


def attend(
    kernel: Kernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: PackedSeqParams
) -> torch.Tensor:
    """Query [t, n/tp, d], key and value [t, g/tp, d] -> context [t, n/tp, d]."""
    if query.is_cuda and query.dtype is torch.bfloat16:
        return _variable_length(query, key, value, places)
    starts = places.cu_seqlens_q.tolist()
    pieces = [
        kernel(*(x[begin:end].unsqueeze(1) for x in (query, key, value))).squeeze(1)
        for begin, end in itertools.pairwise(starts)
    ]
    return torch.cat(pieces)


def _variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: PackedSeqParams
) -> torch.Tensor:
    """All documents in one fused call: flash-attn's where it can be imported, else torch's; the start says which."""
    starts, longest = places.cu_seqlens_q, places.max_seqlen_q
    package = flash.package()
    if isinstance(package, str):
        from torch.nn.attention.varlen import varlen_attn

        copies = query.shape[1] // key.shape[1]
        # torch 2.11's takes no query groups; from 2.12 on it has `enable_gqa`, which was not run on a GPU
        key, value = (x.repeat_interleave(copies, dim=1) for x in (key, value))
        causal = varlen_attn(query, key, value, starts, starts, longest, longest, window_size=(-1, 0))
        return cast(torch.Tensor, causal)
    ordered = torch.are_deterministic_algorithms_enabled()
    apart = package.flash_attn_varlen_func(
        query, key, value, starts, starts, longest, longest, causal=True, deterministic=ordered
    )
    return cast(torch.Tensor, apart)
