"""Whether ranks that should hold equal weights do: the guard against a gradient that some of them did not get."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinyllama_mcore.parallel.mesh import Mesh


def spread(weights: Iterable[tuple[torch.Tensor, bool]], mesh: Mesh) -> float:
    """Largest difference between two ranks' copies of one weight. Collective.

    Copies are along the shard axis, and along the tensor axis where the weight is not cut.

    Args:
        weights: each whole along the shard axis, and whether the tensor axis cuts it. Pipeline ranks have different
            ones.
        mesh: the axes.
    """
    largest = torch.zeros((), device=mesh.device)
    for weight, is_cut in weights:
        for group in (mesh.shard.group, *[mesh.tensor.group] * (not is_cut)):
            most, least = weight.detach().clone(), weight.detach().clone()
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=group)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=group)
            largest = torch.maximum(largest, (most - least).abs().max().float())
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)
