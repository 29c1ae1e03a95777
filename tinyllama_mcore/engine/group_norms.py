"""`--log-grad-norm-by-group`: the norm of the gradient, by the part of the model that it belongs to.

Each rank squares its own part of each gradient where AdamW is about to take it: reduced, and each element on one rank.
The sums cross over once, over gloo. Nothing is computed in an iteration that is not asked for. Neighbours: `base`
asks, `state` finds a rank's part.
"""

from __future__ import annotations

import math
import re

import torch

from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.model.parameters import part_names
from tinyllama_mcore.optim.clip import squares
from tinyllama_mcore.parallel.mesh import Mesh

_OF_A_LAYER = {
    "qkv": "attention",
    "bias": "attention",
    "proj": "attention",
    "gate": "mlp",
    "up": "mlp",
    "fc2": "mlp",
    "norm": "norms",
}
"""Kind of a decoder layer's parameter -> its group in the layer."""
_OUTSIDE = {"embedding": "embedding", "norm": "final_norm", "head": "head"}
"""Kind of any other parameter -> its group."""


def group_of(parameter: LogicalParameter) -> str:
    """The group of a parameter: `embedding`, `layers.17.attention`, `.mlp` or `.norms`, `final_norm`, `head`."""
    layer = re.match(r"decoder\.(layers\.\d+)\.", parameter.name)
    return f"{layer[1]}.{_OF_A_LAYER[parameter.kind]}" if layer else _OUTSIDE[parameter.kind]


class GroupNorms:
    """Norms of one iteration's gradient."""

    def __init__(
        self, config: ModelConfig, model: ModelChunks, state: ShardedState, mesh: Mesh, *, counts: bool
    ) -> None:
        """`counts`: whether this rank's parts count; False on ranks that hold what another rank of the shard axis has.

        `model` as the engine left it. `add` has to be called before each update, once its gradients are there.
        """
        groups = {parameter.name: group_of(parameter) for parameter in logical_parameters(config)}
        self._names = tuple(dict.fromkeys(groups.values()))
        self._model, self._state = model, state
        self._place = {
            name: self._names.index(groups[part_names(name)[0]])
            for name, parameter in model.named_tensors()
            # the mark of `model.gpt`: what tensor-parallel ranks do not cut is counted on the first of them
            if counts and (parameter.tensor_model_parallel or mesh.tensor.rank == 0)  # type: ignore[attr-defined]
        }
        self._found: list[tuple[list[int], list[torch.Tensor]]] | None = None

    def begin(self) -> None:
        """The next update is one that is asked for."""
        self._found = []

    @torch.no_grad()
    def add(self, *_: object) -> None:
        """Square what AdamW is about to take, in an update that is asked for: torch's hook before its step."""
        if self._found is None:
            return
        named = ((n, self._state.gradient_part(p)) for n, p in self._model.named_tensors() if n in self._place)
        parts = [(self._place[name], part) for name, part in named if part is not None and part.numel()]
        if parts:
            self._found.append(([place for place, _ in parts], squares([part for _, part in parts])))

    def end(self, scale: float) -> dict[str, float]:
        """The norm of each group, `scale` times that of what was added up. Collective; waits for the GPU."""
        assert self._found is not None
        sums = torch.zeros(len(self._names), dtype=torch.float64)
        for places, found in self._found:
            sums.index_add_(0, torch.tensor(places), torch.stack(found).double().cpu())
        self._found = None
        torch.distributed.all_reduce(sums)
        return {name: scale * math.sqrt(square) for name, square in zip(self._names, sums.tolist(), strict=True)}
