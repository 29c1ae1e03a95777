"""The mesh: which ranks share a matrix (tensor axis) and which see different samples (data axis).

Megatron-core makes the process groups; everybody else is handed a `Mesh` and fetches nothing. Rank order is
Megatron's: the tensor axis varies fastest.
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
    data: Axis
    model: Axis
    """All ranks that hold one copy of the model together: the tensor axis (times the pipeline axis)."""
    groups: ProcessGroupCollection
    """The same process groups in Megatron's own words, for its layers."""
    storage: DeviceMesh
    """(tensor, data) over CPU tensors: how a checkpoint's tensors are spread while they are written and read."""

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for the job."""
        return self.rank == 0


def build(layout: LayoutConfig, seed: int) -> Mesh:
    """Make every process group of the job. Needs torch.distributed; collective over all ranks."""
    cpu.install_stand_ins()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=layout.tensor_model_parallel_size)
    cpu.seed_rng_tracker(seed)
    tensor = _axis(parallel_state.get_tensor_model_parallel_group())
    data = _axis(parallel_state.get_data_parallel_group())
    world_size = torch.distributed.get_world_size()
    places = torch.arange(world_size).view(data.size, tensor.size).T  # [tensor, data]
    return Mesh(
        rank=torch.distributed.get_rank(),
        world_size=world_size,
        device=torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu"),
        tensor=tensor,
        data=data,
        model=_axis(parallel_state.get_model_parallel_group()),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
        storage=DeviceMesh.from_group(
            [tensor.group, data.group], "cpu", mesh=places, mesh_dim_names=("tensor", "data")
        ),
    )


def _axis(group: ProcessGroup) -> Axis:
    return Axis(size=group.size(), rank=group.rank(), group=group)


class DeepSpeedMpu:
    """The mesh in the words that DeepSpeed asks a Megatron-style `mpu` in.

    `model parallel` is the whole copy of the model: DeepSpeed sums gradient norms over that group. Its *rank* there is
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
        return self._mesh.data.group

    def get_data_parallel_world_size(self) -> int:  # noqa: D102
        return self._mesh.data.size

    def get_data_parallel_rank(self) -> int:  # noqa: D102
        return self._mesh.data.rank
