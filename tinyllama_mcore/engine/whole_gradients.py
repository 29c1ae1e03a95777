"""FSDP that adds gradients up whole over the micro-batches of an iteration, and reduces them once.

torch's `fully_shard` reduce-scatters gradients in every micro-batch unless it is told not to. Here it is told: they are
added in fp32, and where layers are fused (`model.fused`) in the matrix product itself, to a buffer that FSDP then
reduces as its own. Where weights are kept, they stay gathered until the last backward pass. Memory: an fp32 gradient,
whole, on each rank, and of weights that are kept a bf16 copy.
Seen in torch 2.11 and 2.13; tests/distributed/test_curves.py has the curves (`fsdp`, `fsdp-grad-op`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from tinyllama_mcore.model.gpt import ModelChunks


class WholeGradients:
    """Drives FSDP's switches through the micro-batches of an iteration. For a model of one chunk."""

    def __init__(self, model: ModelChunks, *, keeps_weights: bool, fused: bool) -> None:
        """`keeps_weights`: through an iteration; `fused`: the layers add to `main_grad` themselves."""
        self._root: Any = model.chunks[0]
        self._keeps_weights, self._fused = keeps_weights, fused
        self._left = 0
        self._buffers: list[torch.Tensor] = []

    def begin(self, micro_batches: int) -> None:
        """Before the first micro-batch. What an iteration left behind that was broken off is dropped."""
        self._left = micro_batches
        self._reduce(False)
        if self._buffers:
            torch._foreach_zero_(self._buffers)
        for parameter in self._parameters():
            parameter.unsharded_accumulated_grad = None

    def before_backward(self) -> None:
        """Before the backward pass of each micro-batch."""
        if self._fused and not self._buffers:
            for parameter in self._parameters():  # there since the first forward pass
                whole = parameter.unsharded_param
                whole.main_grad = torch.zeros(whole.shape, dtype=torch.float32, device=whole.device)
                self._buffers.append(whole.main_grad)
        self._left -= 1
        if self._left:
            return
        self._reduce(True)
        if self._fused:
            for parameter, buffer in zip(self._parameters(), self._buffers, strict=True):
                parameter.unsharded_accumulated_grad = buffer

    def _reduce(self, now: bool) -> None:
        self._root.set_requires_gradient_sync(now)
        if self._keeps_weights:
            self._root.set_reshard_after_backward(now)

    def _parameters(self) -> Iterator[Any]:
        """FSDP's record of each parameter."""
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                group = module._get_fsdp_state()._fsdp_param_group
                yield from () if group is None else group.fsdp_params
