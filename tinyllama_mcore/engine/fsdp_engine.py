"""FSDP2 behind `ShardingEngine`: torch's `fully_shard` over each decoder layer and over what is left of each chunk.

The module's parameters are the fp32 master weights, sharded over the shard axis; they are cast to bf16 where a layer
gathers them, gradients are reduced in fp32, and AdamW is torch's over the shards (arXiv 2304.11277). Neighbour:
`deepspeed_engine` is the other engine. The guards are tests/distributed/test_curves.py and test_guards.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tinyllama_mcore.config.schema import FsdpConfig, RunConfig
from tinyllama_mcore.data.loader import TokenBatch
from tinyllama_mcore.engine import schedule
from tinyllama_mcore.engine.protocol import STATE_KINDS, StateLookup, StepResult
from tinyllama_mcore.engine.replicas import spread
from tinyllama_mcore.engine.self_check import checked
from tinyllama_mcore.engine.whole_gradients import WholeGradients
from tinyllama_mcore.model.gpt import DTYPES, ModelChunks
from tinyllama_mcore.optim.clip import clip_by_global_norm
from tinyllama_mcore.optim.groups import adamw, create_moments, set_updates
from tinyllama_mcore.parallel.mesh import Mesh


class FsdpEngine:
    """`fully_shard` over this rank's model. See `ShardingEngine` for the methods."""

    check_seconds: float

    def __init__(self, run: RunConfig, mesh: Mesh, model: ModelChunks) -> None:
        """Take `model` (weights not set) over; collective. `load_state` must come before the first step."""
        assert run.sharding.fsdp is not None
        self._run, self._mesh, self._model, self._fsdp = run, mesh, model, run.sharding.fsdp
        self._shards = _shard_mesh(self._fsdp, mesh)
        _shard(model, run, self._shards, on_gpu=mesh.device.type == "cuda")
        on_gpu = mesh.device.type == "cuda" and not self._fsdp.cpu_offload
        self._adam = adamw(model.named_tensors(), run.optimizer, on_gpu=on_gpu)
        self._whole: WholeGradients | None = None
        if _keeps_wholes(run, self._shards) and run.layout.pipeline_model_parallel_size == 1:
            self._whole = WholeGradients(model, fused=run.transformer_impl == "fused")

    def train_step(self, batches: Sequence[TokenBatch], lr: float, largest_loss: float) -> StepResult:
        """See `ShardingEngine.train_step`."""
        self._model.train()
        for parameters in self._adam.param_groups:
            parameters["lr"] = lr
        before_backward = None
        if self._whole is not None:
            self._whole.begin(len(batches))
            before_backward = self._whole.before_backward
        loss = schedule.run(
            self._model, self._model, batches, self._mesh, forward_only=False, before_backward=before_backward
        )
        shards = self._shards.get_group(self._shards.ndim - 1)  # not over the copies of a hybrid shard
        norm = clip_by_global_norm(self._model.parameters(), self._run.optimizer.clip_grad, self._mesh, shards=shards)
        mean, length = torch.stack([loss.float(), norm]).tolist()  # the one time that an iteration waits for the GPU
        if not (math.isfinite(mean) and mean <= largest_loss):
            length = math.nan
        if math.isfinite(length):
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return StepResult(loss=mean, grad_norm=length, skipped=not math.isfinite(length))

    @torch.no_grad()
    def eval_step(self, batches: Sequence[TokenBatch]) -> float:
        """See `ShardingEngine.eval_step`."""
        self._model.eval()
        return float(schedule.run(self._model, self._model, batches, self._mesh, forward_only=True))

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `ShardingEngine.logits`."""
        self._model.eval()
        return schedule.logits(self._model, self._model, tokens, self._mesh)

    @torch.no_grad()
    def state(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """See `ShardingEngine.state`."""
        self._begin()
        for name, parameter in self._model.named_tensors():
            yield name, _whole(self._tensor(parameter, kind), self._mesh.device)

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `CheckedEngine.forward_weights`."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                for name, parameter in self._model.named_tensors():
                    if not isinstance(parameter, DTensor):
                        yield name, parameter.detach()
                module.reshard()

    @torch.no_grad()
    @checked
    def load_state(self, lookup: StateLookup, updates: int) -> None:
        """See `ShardingEngine.load_state`."""
        self._begin()
        for kind in STATE_KINDS:
            for name, parameter in self._model.named_tensors():
                value = lookup(kind, name)
                if value is not None:
                    target = self._tensor(parameter, kind)
                    # every rank has the whole value: each keeps its own part, nothing is sent
                    own = distribute_tensor(
                        value.to(self._mesh.device), target.device_mesh, target.placements, src_data_rank=None
                    )
                    target.to_local().copy_(own.to_local())
        set_updates(self._adam, updates)

    @torch.no_grad()
    def replica_spread(self) -> float:
        """See `ShardingEngine.replica_spread`."""
        self._begin()

        def wholes() -> Iterator[tuple[torch.Tensor, contextlib.AbstractContextManager]]:
            for _, parameter in self._model.named_tensors():
                whole = _whole(self._tensor(parameter, "model"), self._mesh.device)
                whole.tensor_model_parallel = parameter.tensor_model_parallel  # type: ignore[attr-defined]
                yield whole, contextlib.nullcontext()

        return spread(wholes(), self._mesh)

    def describe(self) -> str:
        """See `ShardingEngine.describe`."""
        size = "x".join(map(str, self._shards.shape))
        fused = " fused" if self._adam.defaults["fused"] else ""
        return f"FSDP2 {self._fsdp.sharding_strategy} over {size} ranks (torch {torch.__version__}), AdamW{fused}"

    def _begin(self) -> None:
        """Make the moments exist, at zero, and let go of gathered weights."""
        create_moments(self._adam, (p for group in self._adam.param_groups for p in group["params"]))
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _tensor(self, parameter: torch.nn.Parameter, kind: str) -> DTensor:
        return cast(DTensor, parameter.detach() if kind == "model" else self._adam.state[parameter][kind])


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


def _keeps_wholes(run: RunConfig, shards: DeviceMesh) -> bool:
    """Whether weights stay gathered, and gradients whole, through the micro-batches of an iteration.

    So it is where the JSON says so, and where one rank has all of them anyway.
    """
    assert run.sharding.fsdp is not None
    alone = shards.size(shards.ndim - 1) == 1 and not run.sharding.fsdp.cpu_offload
    return run.sharding.fsdp.sharding_strategy == "shard_grad_op" or alone


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
    # a pipeline comes back to a layer for each micro-batch before the last one has left: gathering it again is waste
    reshard = not _keeps_wholes(run, shards) and run.layout.pipeline_model_parallel_size == 1
    for layer in model.layers():
        fully_shard(layer, reshard_after_forward=reshard, **policy)
    for chunk in model.chunks:
        fully_shard(chunk, reshard_after_forward=False, **policy)
    for name, parameter in model.named_tensors():  # fully_shard puts new parameters in the place of the old ones
        parameter.tensor_model_parallel = marks[name]  # type: ignore[attr-defined]


def _whole(tensor: DTensor, device: torch.device) -> torch.Tensor:
    """The whole along the shard axis, gathered on `device`, where the axis communicates."""
    return cast(DTensor, tensor.to(device)).full_tensor()
