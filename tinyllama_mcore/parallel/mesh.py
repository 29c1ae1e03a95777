"""The mesh: which ranks share what.

A matrix (tensor axis), the layers (pipeline axis), a sequence (context axis); along the data axis samples differ.
Megatron-core makes the process groups; everybody else is handed a `Mesh` and fetches nothing. Rank order is
Megatron's: the tensor axis varies fastest, then context, then data, then pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from tinyllama_mcore.config.schema import LayoutConfig
from tinyllama_mcore.parallel import cpu


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the mesh, seen from this rank."""

    size: int
    rank: int
    """Place of this process along the axis."""
    group: ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The whole job, seen from this rank."""

    rank: int
    """Place of this process in the job."""
    world_size: int
    device: torch.device
    """Where this process computes."""
    tensor: Axis
    pipeline: Axis
    context: Axis
    data: Axis
    shard: Axis
    """Data x context: the ranks with the same weights, which ZeRO and FSDP shard and average gradients over."""
    model: Axis
    """Tensor x pipeline: the ranks that hold one copy of the model together."""
    groups: ProcessGroupCollection
    """The same process groups in Megatron's own words, for its layers."""
    storage: DeviceMesh
    """(tensor, shard) over CPU tensors, of this pipeline rank: how its tensors are spread in a checkpoint."""

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for the job."""
        return self.rank == 0


def build(layout: LayoutConfig, seed: int) -> Mesh:
    """Make every process group of the job. Needs torch.distributed; collective over all ranks."""
    cpu.install_stand_ins()
    virtual = layout.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=layout.context_parallel_size,
        create_gloo_process_groups=False,  # each group has a gloo side already, by the job's backend
    )
    cpu.seed_rng_tracker(seed)
    tensor = _axis(parallel_state.get_tensor_model_parallel_group())
    pipeline = _axis(parallel_state.get_pipeline_model_parallel_group())
    shard = _axis(parallel_state.get_data_parallel_group(with_context_parallel=True))
    ranks = torch.arange(layout.world_size).view(pipeline.size, shard.size, tensor.size)
    return Mesh(
        rank=torch.distributed.get_rank(),
        world_size=layout.world_size,
        device=torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu"),
        tensor=tensor,
        pipeline=pipeline,
        context=_axis(parallel_state.get_context_parallel_group()),
        data=_axis(parallel_state.get_data_parallel_group()),
        shard=shard,
        model=_axis(parallel_state.get_model_parallel_group()),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
        storage=DeviceMesh.from_group(
            [tensor.group, shard.group], "cpu", mesh=ranks[pipeline.rank].T, mesh_dim_names=("tensor", "shard")
        ),
    )


def _axis(group: ProcessGroup) -> Axis:
    return Axis(size=group.size(), rank=group.rank(), group=group)


class DeepSpeedMpu:
    """The mesh in the words that DeepSpeed asks a Megatron-style `mpu` in.

    `data parallel` is who holds the same weights, the context axis included. `model parallel` is the whole copy of the
    model: DeepSpeed sums gradient norms over that group. Its *rank* there is
    only asked for to decide who counts a parameter that every tensor-parallel rank holds, so it is the rank along the
    tensor axis (runtime/utils.py `clip_grad_norm_` and zero/stage3.py, DeepSpeed 0.19.8).
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_model_parallel_group(self) -> ProcessGroup:  # noqa: D102
        return self._mesh.model.group

    def get_model_parallel_world_size(self) -> int:  # noqa: D102
        return self._mesh.model.size

    def get_model_parallel_rank(self) -> int:  # noqa: D102
        return self._mesh.tensor.rank

    def get_tensor_model_parallel_group(self) -> ProcessGroup:  # noqa: D102
        return self._mesh.tensor.group

    def get_tensor_model_parallel_world_size(self) -> int:  # noqa: D102
        return self._mesh.tensor.size

    def get_tensor_model_parallel_rank(self) -> int:  # noqa: D102
        return self._mesh.tensor.rank

    def get_data_parallel_group(self) -> ProcessGroup:  # noqa: D102
        return self._mesh.shard.group

    def get_data_parallel_world_size(self) -> int:  # noqa: D102
        return self._mesh.shard.size

    def get_data_parallel_rank(self) -> int:  # noqa: D102
        return self._mesh.shard.rank
