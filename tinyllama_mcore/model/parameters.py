"""A rank's part of the logical parameters (`config.parameters`): which they are, and how their tensors are cut.

A module's parameter is one or more *parts*: equal chunks along dim 0 of the local tensor, each a shard of one logical
parameter. Only SwiGLU's first matrix has two (`gate` and `up`), because Megatron keeps both in one local tensor and
cuts each over the tensor-parallel ranks. Local sizes are the global ones over tp.
"""

from __future__ import annotations

import re

import torch

from tinyllama_mcore.config.parameters import LogicalParameter


def part_names(module_name: str) -> tuple[str, ...]:
    """Logical names of the parts that a module's parameter holds, in order along its dim 0."""
    fc1 = re.fullmatch(r"(.*mlp\.linear_fc1)\.weight", module_name)
    return (f"{fc1[1]}.gate.weight", f"{fc1[1]}.up.weight") if fc1 else (module_name,)


def shard_of(full: torch.Tensor, tp_dim: int | None, tp_rank: int, tp_size: int) -> torch.Tensor:
    """The contiguous shard of a logical tensor that a tensor-parallel rank holds; the last one may be shorter."""
    if tp_dim is None:
        return full
    size = -(-full.shape[tp_dim] // tp_size)
    start = min(tp_rank * size, full.shape[tp_dim])
    return full.narrow(tp_dim, start, min(size, full.shape[tp_dim] - start))


def pad_rows(shard: torch.Tensor, parameter: LogicalParameter, tp_size: int) -> torch.Tensor:
    """A shard with zero rows appended up to the size that every tensor-parallel rank's module has."""
    if parameter.tp_dim != 0:
        return shard
    missing = -(-parameter.shape[0] // tp_size) - shard.shape[0]
    return torch.cat([shard, shard.new_zeros(missing, *shard.shape[1:])])
