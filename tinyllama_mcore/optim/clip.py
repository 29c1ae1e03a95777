"""The global gradient norm where the sharding library does not give one: over every axis, each element once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from tinyllama_mcore.parallel.mesh import Mesh


def clip_by_global_norm(
    parameters: Iterable[torch.nn.Parameter], max_norm: float, mesh: Mesh, *, shards: ProcessGroup | None = None
) -> torch.Tensor:
    """Scale gradients so that their global L2 norm is at most `max_norm` (0: leave them); returns the norm before.

    Gradients are whole along the shard axis, or cut over the ranks of `shards`. Along the tensor axis a parameter
    counts on every rank where it is cut, else on the first rank only. The scale is torch's: max_norm / (norm + 1e-6),
    at most 1.
    """
    gradients = [(p, _local(p.grad)) for p in parameters if p.grad is not None]
    counted = [
        gradient
        for parameter, gradient in gradients
        if parameter.tensor_model_parallel or mesh.tensor.rank == 0  # type: ignore[attr-defined]  # of `model.gpt`
    ]
    square = torch.zeros((), dtype=torch.float32, device=mesh.device)
    if counted:
        square += torch.stack(squares(counted)).sum().to(mesh.device)
    for group in (mesh.model.group, shards):
        if group is not None:
            torch.distributed.all_reduce(square, group=group)
    norm = square.sqrt()
    if max_norm > 0:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if gradients:
            torch._foreach_mul_([gradient for _, gradient in gradients], scale.to(gradients[0][1].device))
    return norm


def squares(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Sum of the squares of each, in fp32: on a GPU by one kernel for many.

    Not so on a CPU, where torch adds up norms in one chain: 4 million elements are 1e-4 too small (torch 2.13).
    """
    if tensors[0].is_cuda:
        return [norm.float().square() for norm in torch._foreach_norm(tensors)]
    return [tensor.float().square().sum() for tensor in tensors]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
