"""FSDP2 behind `ShardingEngine`: torch's `fully_shard` over each decoder layer and over what is left of each chunk.

The module's parameters are the fp32 master weights, sharded over the shard axis; they are cast to bf16 where a layer
gathers them, gradients are reduced in fp32, and AdamW is torch's over the shards (arXiv 2304.11277). Neighbour:
`deepspeed_engine` is the other library's. The guards are tests/distributed/test_curves.py and test_guards.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import FsdpConfig, RunConfig
from tinyllama_mcore.engine import schedule
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.engine.fsdp_state import FsdpState
from tinyllama_mcore.engine.protocol import StepResult, step_result
from tinyllama_mcore.engine.whole_gradients import WholeGradients
from tinyllama_mcore.model.gpt import DTYPES, ModelChunks
from tinyllama_mcore.optim.clip import clip_by_global_norm
from tinyllama_mcore.optim.groups import adamw
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.loader import TokenBatch


class FsdpEngine(ShardingEngine):
    """`fully_shard` over this rank's model."""

    def __init__(self, run: RunConfig, mesh: Mesh, model: ModelChunks) -> None:
        """Take `model` (weights not set) over; collective. `load_state` must come before the first step."""
        assert run.sharding.fsdp is not None
        self._run, self._mesh, self._model, self._fsdp = run, mesh, model, run.sharding.fsdp
        self._shards = _shard_mesh(self._fsdp, mesh)
        _shard(model, run, self._shards, on_gpu=mesh.device.type == "cuda")
        self._adam = adamw(model.named_tensors(), run.optimizer)
        self._state = FsdpState(model, self._adam, mesh.device)
        self._evaluated = model
        self._whole: WholeGradients | None = None
        if engines.fsdp_keeps_gradients(run):
            self._whole = WholeGradients(
                model, keeps_weights=engines.fsdp_keeps_weights(run), fused=engines.adds_in_the_product(run)
            )
        self._watch_norms(counts=self._shards.get_local_rank(0) == 0 if self._shards.ndim > 1 else True)

    def _passes(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """By the schedule; gradients are reduced after each micro-batch, or once after the last."""
        before_backward = None
        if self._whole is not None:
            self._whole.begin(len(batches))
            before_backward = self._whole.before_backward
        return schedule.train(self._model, self._model, batches, self._mesh, before_backward=before_backward)

    def _update(self, loss: torch.Tensor, largest_loss: float) -> StepResult:
        """AdamW's over the shards."""
        shards = self._shards.get_group(self._shards.ndim - 1)  # not over the copies of a hybrid shard
        norm = clip_by_global_norm(self._model.parameters(), self._run.optimizer.clip_grad, self._mesh, shards=shards)
        mean, length = torch.stack([loss.float(), norm]).tolist()  # the one time that an iteration waits for the GPU
        result = step_result(mean, length, largest_loss)
        if not result.skipped:
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return result

    def describe(self) -> str:
        """See `ShardingEngine.describe`."""
        size = "x".join(map(str, self._shards.shape))
        return f"FSDP2 {self._fsdp.sharding_strategy} over {size} ranks (torch {torch.__version__}), AdamW fused"


def _shard_mesh(fsdp: FsdpConfig, mesh: Mesh) -> DeviceMesh:
    """The shard axis as a mesh of its own: [shard], or [copies, shard] for a hybrid shard."""
    group, device = mesh.shard.group, mesh.device.type
    if fsdp.hybrid_shard_size is None:
        return DeviceMesh.from_group(group, device, mesh_dim_names=("shard",))
    ranks = torch.tensor(torch.distributed.get_process_group_ranks(group)).view(-1, fsdp.hybrid_shard_size)
    everywhere: list[list[list[int]]] = [[] for _ in range(mesh.world_size)]
    torch.distributed.all_gather_object(everywhere, ranks.tolist())
    own: list[torch.distributed.ProcessGroup] = []
    for grid in sorted({str(grid): grid for grid in everywhere}.values()):  # new_group wants every rank, in one order
        table = torch.tensor(grid)
        for lines in (table.T, table):
            for line in lines.tolist():
                made = torch.distributed.new_group(line)
                if mesh.rank in line:
                    own.append(made)
    return DeviceMesh.from_group(own, device, mesh=ranks, mesh_dim_names=("copies", "shard"))


def _shard(model: ModelChunks, run: RunConfig, shards: DeviceMesh, *, on_gpu: bool) -> None:
    """Shard each decoder layer, then what is left of each chunk: embedding, final norm, head."""
    fsdp = run.sharding.fsdp
    assert fsdp is not None
    marks = {
        name: parameter.tensor_model_parallel  # type: ignore[attr-defined]
        for name, parameter in model.named_tensors()
    }
    policy: dict[str, Any] = {
        "mesh": shards,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=DTYPES[run.sharding.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        # without a GPU everything is in host memory as it is
        "offload_policy": CPUOffloadPolicy() if fsdp.cpu_offload and on_gpu else OffloadPolicy(),
    }
    reshard = not engines.fsdp_keeps_weights(run)
    for layer in model.layers():
        fully_shard(layer, reshard_after_forward=reshard, **policy)
    for chunk in model.chunks:
        fully_shard(chunk, reshard_after_forward=False, **policy)
    for name, parameter in model.named_tensors():  # fully_shard puts new parameters in the place of the old ones
        parameter.tensor_model_parallel = marks[name]  # type: ignore[attr-defined]
