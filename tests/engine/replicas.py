"""Whether ranks that should hold equal weights do: what sees a gradient that some of them did not get."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.parallel.mesh import Mesh


@torch.no_grad()
def replica_spread(engine: ShardingEngine) -> float:
    """Largest difference between two ranks' copies of one parameter, over the tensor and data axes: 0 if right.

    Compares the weights that the forward pass uses; under FSDP the fp32 ones, which a hybrid shard has copies of.
    """
    from tinyllama_mcore.engine.fsdp_engine import FsdpEngine

    weights = engine.state("model") if isinstance(engine, FsdpEngine) else engine.forward_weights()
    cut = {name: parameter.tensor_model_parallel for name, parameter in engine._model.named_tensors()}
    return spread(((weight, cut[name]) for name, weight in weights), engine._mesh)


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
