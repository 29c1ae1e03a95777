"""Whether ranks that should hold equal weights do: the guard against a gradient that some of them did not get."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch

from tinyllama_mcore.parallel.mesh import Mesh


def spread(parameters: Iterable[tuple[torch.Tensor, AbstractContextManager]], mesh: Mesh) -> float:
    """Largest difference between two ranks' copies of one parameter. Collective.

    Copies are along the shard axis, and along the tensor axis where the parameter is not cut.

    Args:
        parameters: each with a context in which it is whole along the shard axis. Pipeline ranks hold different ones.
        mesh: the axes.
    """
    largest = torch.zeros((), device=mesh.device)
    for parameter, whole in parameters:
        with whole:
            groups = [mesh.shard.group]
            if not parameter.tensor_model_parallel:  # type: ignore[attr-defined]  # the mark of `model.gpt`
                groups.append(mesh.tensor.group)
            for group in groups:
                most, least = parameter.detach().clone(), parameter.detach().clone()
                torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=group)
                torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=group)
                largest = torch.maximum(largest, (most - least).abs().max().float())
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)
