"""FSDP's fp32 weights and moments, one parameter at a time: each is a `DTensor`, sharded along its dim 0.

Neighbours: `state` is the protocol, `fsdp_engine` the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.model.gpt import ModelChunks


class FsdpState(ShardedState):
    """`fully_shard`'s parameters, and AdamW's moments over their shards. See `ShardedState` for the methods."""

    def __init__(self, model: ModelChunks, adam: torch.optim.AdamW, device: torch.device) -> None:
        """`device`: where the shard axis communicates. Offloaded shards go there to be gathered."""
        super().__init__(model, adam)
        self._device = device

    def begin(self) -> None:
        """Gathered weights are let go of: until then a module holds those in the place of its shards."""
        super().begin()
        for module in self._sharded_modules():
            module.reshard()

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """Gathered from every rank of the shard axis."""
        return cast(DTensor, self._tensor(parameter, kind).to(self._device)).full_tensor()

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Every rank has the whole value: each keeps its own part, and nothing is sent."""
        target = self._tensor(parameter, kind)
        own = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(own.to_local())

    def gradient_part(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Its shard."""
        return None if parameter.grad is None else cast(DTensor, parameter.grad).to_local()

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gathered module by module, as the forward pass does."""
        for module in self._sharded_modules():
            module.unshard()
            for name, parameter in self._model.named_tensors():
                if not isinstance(parameter, DTensor):
                    yield name, parameter.detach()
            module.reshard()

    def _sharded_modules(self) -> Iterator[FSDPModule]:
        return (module for module in self._model.modules() if isinstance(module, FSDPModule))

    def _tensor(self, parameter: torch.nn.Parameter, kind: str) -> DTensor:
        return cast(DTensor, parameter.detach() if kind == "model" else self._adam.state[parameter][kind])
