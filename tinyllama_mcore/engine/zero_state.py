"""DeepSpeed's fp32 weights and moments, one parameter at a time, for each ZeRO stage.

DeepSpeed has readers for every stage (`safe_get_full_*`) but its writers have gaps, closed here: moments do not exist
before the first update, and what the forward pass uses is not refreshed from new fp32 weights. Seen in DeepSpeed
0.19.8; tests/distributed/test_resume.py and test_state.py show each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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

from tinyllama_mcore.optim.groups import create_moments, set_updates

MOMENTS = ("exp_avg", "exp_avg_sq")


class StageState(Protocol):
    """Access to the state of one ZeRO stage. `kind` is "model" or one of `MOMENTS`."""

    def begin(self) -> None:
        """Make the moments exist, at zero, and let go of gathered copies."""

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """The whole tensor, fp32. Collective over the data axis."""

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Set this rank's part from the whole tensor `value`."""

    def commit(self, updates: int) -> None:
        """Say how many updates the moments have behind them, and refresh what the forward pass uses."""


class Stage0State:
    """Plain AdamW over whole parameters."""

    def __init__(self, optimizer: torch.optim.AdamW, adam: torch.optim.AdamW) -> None:
        self._adam = adam

    def begin(self) -> None:  # noqa: D102  see StageState
        create_moments(self._adam, (p for group in self._adam.param_groups for p in group["params"]))

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:  # noqa: D102
        return parameter.detach() if kind == "model" else self._adam.state[parameter][kind]

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:  # noqa: D102
        self.read(parameter, kind).copy_(value)

    def commit(self, updates: int) -> None:  # noqa: D102
        set_updates(self._adam, updates)


class Stage12State:
    """ZeRO-1, ZeRO-2 and BF16_Optimizer: AdamW over one flat fp32 partition a group."""

    def __init__(self, optimizer: Any, adam: torch.optim.AdamW) -> None:  # noqa: ANN401  one of three classes
        self._optimizer, self._adam = optimizer, adam
        if getattr(optimizer, "round_robin_gradients", False):
            _link_by_place(optimizer)

    def begin(self) -> None:  # noqa: D102
        create_moments(self._adam, (flat for group in self._adam.param_groups for flat in group["params"]))
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:  # noqa: D102
        if kind == "model":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def write(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:  # noqa: D102
        if kind == "model":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def commit(self, updates: int) -> None:  # noqa: D102
        set_updates(self._adam, updates)
        self._optimizer.update_lp_params()


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


class Stage3State:
    """ZeRO-3: each parameter is partitioned by itself, padded to a multiple of the data-parallel size."""

    def __init__(self, optimizer: Any, adam: torch.optim.AdamW) -> None:  # noqa: ANN401  DeepSpeedZeroOptimizer_Stage3
        self._optimizer, self._adam = optimizer, adam

    def begin(self) -> None:  # noqa: D102
        create_moments(self._adam, self._optimizer.fp32_partitioned_groups_flat)
        self._optimizer.parameter_offload.partition_all_parameters()

    def read(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:  # noqa: D102
        if kind == "model":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

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

    def commit(self, updates: int) -> None:  # noqa: D102
        set_updates(self._adam, updates)
        for group in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if persistent := self._optimizer.persistent_parameters:  # small ones that ZeRO-3 keeps gathered
            persistent[0].all_gather(persistent)


STAGE_STATES: dict[int, Callable[[Any, torch.optim.AdamW], StageState]] = {
    0: Stage0State,
    1: Stage12State,
    2: Stage12State,
    3: Stage3State,
}
