"""DeepSpeed's fp32 weights and moments, one parameter at a time, for each ZeRO stage.

DeepSpeed has readers for every stage (`safe_get_full_*`) but its writers have gaps, closed here: moments do not exist
before the first update, and what the forward pass uses is not refreshed from new fp32 weights. Seen in DeepSpeed
0.19.8; tests/engine/test_zero_state.py shows each. Neighbours: `state` is the protocol, `deepspeed_engine` the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    link_hp_params,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from tinyllama_mcore.engine.state import ShardedState
from tinyllama_mcore.model.gpt import ModelChunks


class Stage0State(ShardedState):
    """Plain AdamW over whole parameters. See `ShardedState` for the methods."""

    def __init__(self, model: ModelChunks, adam: torch.optim.AdamW, optimizer: Any) -> None:  # noqa: ANN401
        """DeepSpeed's `optimizer` keeps nothing here."""
        super().__init__(model, adam)

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """The tensor itself."""
        return parameter.detach() if kind == "model" else self._adam.state[parameter][kind]

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Into the tensor itself."""
        self.read(parameter, kind).copy_(value)

    def gradient_part(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """All of it."""
        return parameter.grad


class _PartitionedState(ShardedState):
    """What DeepSpeed's own readers find: ZeRO-1 to 3."""

    def __init__(self, model: ModelChunks, adam: torch.optim.AdamW, optimizer: Any) -> None:  # noqa: ANN401
        """`optimizer`: BF16_Optimizer, DeepSpeedZeroOptimizer or DeepSpeedZeroOptimizer_Stage3."""
        super().__init__(model, adam)
        self._optimizer = optimizer

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """Put together from every rank's partition."""
        if kind == "model":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def _taken(self, flat: torch.Tensor) -> torch.Tensor | None:
        """The gradient of a flat partition, if AdamW steps over it now: DeepSpeed calls it for one after the other."""
        now = (tensor for group in self._adam.param_groups for tensor in group["params"])
        return flat.grad if any(tensor is flat for tensor in now) else None


class Stage12State(_PartitionedState):
    """ZeRO-1, ZeRO-2 and BF16_Optimizer: AdamW over one flat fp32 partition a group."""

    def __init__(self, model: ModelChunks, adam: torch.optim.AdamW, optimizer: Any) -> None:  # noqa: ANN401
        """DeepSpeed's links from weights to partitions are mended where they are wrong."""
        super().__init__(model, adam, optimizer)
        if getattr(optimizer, "round_robin_gradients", False):
            _link_by_place(optimizer)

    def begin(self) -> None:
        """Each weight is linked to its moments once they are there."""
        super().begin()
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """By DeepSpeed's setters of the whole."""
        if kind == "model":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def commit(self, updates: int) -> None:
        """The weights of the forward pass are copied from the partitions."""
        super().commit(updates)
        self._optimizer.update_lp_params()

    def gradient_part(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """By DeepSpeed's link from a weight to its place in the partitions."""
        link = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed hangs it on
        if link is None:
            return None
        flat = self._gradient_of(link.param_group_index)
        place = link.hp_fragment_address
        return None if flat is None else flat.narrow(0, place.start, place.numel)

    def _gradient_of(self, group: int) -> torch.Tensor | None:
        """The gradient of a group's flat fp32 partition, as BF16_Optimizer and DeepSpeedZeroOptimizer call them."""
        kept = self._optimizer
        flat = getattr(kept, "fp32_groups_flat_partition", None) or kept.single_partition_of_fp32_groups
        return self._taken(flat[group])


def _link_by_place(optimizer: Any) -> None:  # noqa: ANN401  DeepSpeedZeroOptimizer
    """Link each weight to its place in the flat fp32 partitions, whose order `round_robin_gradients` changes.

    DeepSpeed links by the model's order unless it pads between weights, so its readers and writers take one weight for
    another (stage_1_and_2.py `_link_all_hp_params`, 0.19.8; tests/distributed/test_self_check.py).
    """
    for group, weights in enumerate(optimizer.bit16_groups):
        placed = zip(optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_offsets[group], strict=True)
        offsets = {id(weight): offset for weight, offset in placed}
        size = optimizer.partition_size[group]
        data = optimizer.real_dp_process_group[group]
        link_hp_params(
            lp_param_list=weights,
            flat_hp_partition=optimizer.single_partition_of_fp32_groups[group],
            gradient_dict=optimizer.averaged_gradients,
            offload_gradient_dict=optimizer.offload_gradient_dict,
            use_offload=optimizer.cpu_offload,
            param_group_index=group,
            partition_start=torch.distributed.get_rank(data) * size,
            partition_size=size,
            dp_group=data,
            param_offsets=[offsets[id(weight)] for weight in weights],
        )


class Stage3State(_PartitionedState):
    """ZeRO-3: each parameter is partitioned by itself, padded to a multiple of the shard axis."""

    def begin(self) -> None:
        """Gathered weights are let go of."""
        super().begin()
        self._optimizer.parameter_offload.partition_all_parameters()

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """By the local setters: `safe_set_full_*` forgets the padding where numel is not a multiple of the ranks."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed hangs it on
        start = size * self._optimizer._get_param_partition_rank(parameter)
        part = value.flatten()[start : start + size]
        part = torch.nn.functional.pad(part, (0, size - part.numel()))
        if kind == "model":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def gradient_part(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """By the place that DeepSpeed keeps of it in a flat partition."""
        group, begin, size = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        flat = self._taken(self._optimizer.fp32_partitioned_groups_flat[group])
        return None if flat is None else flat.narrow(0, begin, size)

    def commit(self, updates: int) -> None:
        """The partitions of the forward pass are copied from the fp32 ones, and small weights gathered again."""
        super().commit(updates)
        for group in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if persistent := self._optimizer.persistent_parameters:  # small ones that ZeRO-3 keeps gathered
            persistent[0].all_gather(persistent)

    def forward_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gathered one by one."""
        for name, parameter in self._model.named_tensors():
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()

    def _updated(self) -> Iterable[torch.Tensor]:
        """Flat partitions, which AdamW's groups name only while it steps."""
        return self._optimizer.fp32_partitioned_groups_flat


STAGE_STATES: dict[int, Callable[[ModelChunks, torch.optim.AdamW, Any], ShardedState]] = {
    0: Stage0State,
    1: Stage12State,
    2: Stage12State,
    3: Stage3State,
}
