"""Context parallelism: each sequence is split over the ranks of the context axis, which only the core attention joins.

A sequence is cut into 2 cp chunks, and rank r holds chunks r and 2 cp - 1 - r: with a causal mask the early chunk is
cheap by as much as the late one is dear, so all ranks work alike (Megatron-core's order: its rotary embedding takes
`get_pos_emb_on_this_cp_rank`). Keys and values are gathered whole, queries stay (Llama 3, arXiv 2407.21783, section
3.3.2): with grouped-query attention they are the small part, n/g = 8 times smaller than the queries in TinyLlama.
Shapes: s sequence, b micro-batch, n query heads, g query groups, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch.distributed import ProcessGroup

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""query [s, b, n/tp, d], key and value [t, b, g/tp, d] -> context [s, b, n/tp, d], where t >= s and the queries are the
last s of t positions."""


def own_chunks(tensor: torch.Tensor, rank: int, size: int, dim: int) -> torch.Tensor:
    """The part of a whole sequence along `dim` that context rank `rank` of `size` works on: two chunks of 2 size."""
    if size == 1:
        return tensor
    chunks = tensor.chunk(2 * size, dim)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim)


def in_order(gathered: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    """The whole sequence along `dim` from the ranks' parts, one after the other: the inverse of `own_chunks`."""
    if size == 1:
        return gathered
    chunks = gathered.chunk(2 * size, dim)  # rank 0's two, rank 1's two, ...
    early, late = chunks[0::2], chunks[1::2]
    return torch.cat([*early, *reversed(late)], dim)


@torch.compiler.disable  # torch 2.11 compiles this gather with a wrong backward pass: half the gradient norm (not 2.13)
def attend(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: ProcessGroup,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> torch.Tensor:
    """Query [s/cp, b, n/tp, d], key and value [s/cp, b, g/tp, d] -> context [s/cp, b, n/tp, d].

    The backward pass sums the gradients of keys and values over the ranks (reduce-scatter). `waiting` is around the
    wait for the other ranks (`parallel.own_time`).
    """
    rank, size = group.rank(), group.size()
    key_value = torch.cat([key, value], dim=-1)  # one collective for the two
    with waiting():
        key_value = gather_from_sequence_parallel_region(key_value, group=group)
    keys, values = in_order(key_value, size, dim=0).chunk(2, dim=-1)  # [s, b, g/tp, d]
    length = query.shape[0] // 2
    parts = []
    for chunk, queries in zip((rank, 2 * size - 1 - rank), query.chunk(2), strict=True):
        seen = (chunk + 1) * length
        parts.append(kernel(queries, keys[:seen], values[:seen]))
    return torch.cat(parts)
