"""DeepSpeed's BF16_Optimizer (ZeRO-1 in bf16, fp32 accumulation) without what makes the GPU wait.

Its buffers and its sharding are DeepSpeed's. Three things are ours:

- Fused layers (`model.fused`) add weight gradients to the flat fp32 buffer in the matrix product itself: each parameter
  gets its place there as `main_grad`. DeepSpeed's hooks would write a gradient in bf16, read, cast and add it.
- Norm, clipping and what to do with a bad update are decided on the GPU. DeepSpeed asks for the norm of each parameter,
  waits for the answer three times an update, and multiplies and clears the whole buffer once more than needed.
- Gradients are reduce-scattered, each rank to the part that it updates. DeepSpeed all-reduces all of them, through a
  copy, and with one rank it multiplies by one.

Seen in DeepSpeed 0.19.8. Without a GPU the step is DeepSpeed's own; tests/distributed/test_curves.py has both curves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

from tinyllama_mcore.parallel.mesh import Mesh


def share_gradients(optimizer: Any) -> bool:  # noqa: ANN401  whatever DeepSpeed made
    """Give each parameter its `main_grad`; False where this optimizer has no such buffer."""
    if not isinstance(optimizer, BF16_Optimizer):
        return False
    for parameters, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.main_grad = gradient.view(parameter.shape)  # Megatron's name
    return True


class DeviceStep(BF16_Optimizer):
    """A BF16_Optimizer whose step does not wait for the GPU. `adopt` makes one of what DeepSpeed built."""

    _mesh: Mesh
    _adam: torch.optim.AdamW
    _reduces: bool
    _counted: list[torch.Tensor]
    """What this rank counts of the gradient's norm: of its own part, each element of the model once."""

    refused: torch.Tensor | None = None
    """Set before a step: bool scalar on the GPU, whether the update must be left out."""

    @classmethod
    def adopt(cls, optimizer: Any, adam: torch.optim.AdamW, mesh: Mesh, *, reduces: bool) -> DeviceStep | None:  # noqa: ANN401
        """`optimizer` as one, or None where it is no BF16_Optimizer over fp32 gradients on a GPU.

        `reduces`: average the gradients over the shard axis, which DeepSpeed's engine has then to leave alone.
        """
        fits = type(optimizer) is BF16_Optimizer and adam.defaults["fused"]
        if not fits or optimizer.grad_acc_dtype is not torch.float32:
            return None
        optimizer.__class__ = cls
        optimizer._mesh, optimizer._adam, optimizer._reduces = mesh, adam, reduces
        optimizer._counted = list(optimizer._own_gradients())
        return optimizer

    def _own_gradients(self) -> Iterator[torch.Tensor]:
        """The part of each gradient in this rank's part of the buffer, if this tensor-parallel rank counts it."""
        for parameters, part in zip(self.bf16_groups, self.fp32_groups_gradient_flat_partition, strict=True):
            first, begin = self._mesh.shard.rank * part.numel(), 0
            for parameter in parameters:
                low, high = max(begin - first, 0), min(begin + parameter.numel() - first, part.numel())
                if low < high and (parameter.tensor_model_parallel or self._mesh.tensor.rank == 0):
                    yield part[low:high]
                begin += parameter.numel()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, update, refresh the bf16 weights, clear. `_global_grad_norm` is then a scalar on the GPU.

        An update with a norm that is not finite, or that was `refused`, changes nothing and counts as none.
        """
        if self._reduces and self._mesh.shard.size > 1:
            for whole, part in zip(
                self.fp32_groups_gradients_flat, self.fp32_groups_gradient_flat_partition, strict=True
            ):  # in place: a rank's part lies where NCCL wants it
                torch.distributed.reduce_scatter_tensor(
                    part, whole, torch.distributed.ReduceOp.AVG, group=self._mesh.shard.group
                )
        square = torch.zeros((), device=self._mesh.device)
        if self._counted:
            square += torch.stack(torch._foreach_norm(self._counted)).square().sum()
        for axis in (self._mesh.shard, self._mesh.model):
            if axis.size > 1:
                torch.distributed.all_reduce(square, group=axis.group)
        norm = square.sqrt()
        left_out = ~torch.isfinite(norm)
        if self.refused is not None:
            left_out |= self.refused
        divisor = torch.clamp((norm + 1e-6) / self.clip_grad, min=1.0) if self.clip_grad > 0 else torch.ones_like(norm)
        for partition, gradient in zip(
            self.fp32_groups_flat_partition, self.fp32_groups_gradient_flat_partition, strict=True
        ):
            partition.grad = gradient
        # the names by which torch's fused AdamW knows what a gradient scaler found
        scaler = {"grad_scale": divisor, "found_inf": left_out.float()}
        vars(self._adam).update(scaler)
        self._adam.step()
        for name in scaler:
            delattr(self._adam, name)
        self._global_grad_norm = norm
        self.update_lp_params()
        self.clear_hp_grads()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`step` cleared the fp32 buffer; DeepSpeed's engine calls this after it."""
        self.clear_lp_grads(set_to_none=True)
