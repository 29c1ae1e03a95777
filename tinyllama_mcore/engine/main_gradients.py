"""Weight gradients straight into DeepSpeed's fp32 buffers, where fused layers compute them.

DeepSpeed's BF16_Optimizer (ZeRO-1 in bf16 with fp32 accumulation) keeps one flat fp32 buffer of gradients, and adds to
it by a hook on each parameter: a gradient in bf16 is written, read, cast and added. Fused layers (`model.fused`) add to
`main_grad` in the matrix product itself, so each parameter gets its place in that buffer, and the hooks find nothing.
Seen in DeepSpeed 0.19.8; tests/distributed/test_curves.py has the curve.
"""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


def share(optimizer: Any) -> bool:  # noqa: ANN401  whatever DeepSpeed made
    """Give each parameter its `main_grad`; False where this optimizer has no such buffer."""
    if not isinstance(optimizer, BF16_Optimizer):
        return False
    for parameters, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.main_grad = gradient.view(parameter.shape)
    return True


def say_there_are_some(optimizer: BF16_Optimizer) -> None:
    """Before a step: all gradients are there. DeepSpeed forgets it after each."""
    optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in optimizer.bf16_groups]
