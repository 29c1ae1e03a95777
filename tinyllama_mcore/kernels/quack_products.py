"""SwiGLU within the matrix products around it, by quack (github.com/Dao-AILab/quack), on Hopper GPUs in bf16.

A product leaves the GPU's registers already gated, and its gradient enters so, which saves two passes over gate and up
each way. They are [t, 2f], gate and up of a feature side by side; weights stay as Megatron lays them out, gate over up
[2f, h], and are read and written so (`concat_layout`). No autotuning: the default tiles with the dynamic scheduler were
the fastest of those tried (docs/evidence/speed-log.md), and each tile is computed alone, in whatever order.
Shapes: t tokens, h hidden, f feed-forward (f/tp on a rank).
"""

from __future__ import annotations

import torch

_HOW = {"tuned": False, "dynamic_scheduler": True}


def swiglu(x: torch.Tensor, fc1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x [t, h], bf16: `gate_up` [t, 2f], and silu(gate) up [t, f] from it before it was rounded."""
    from quack.gemm_interface import gemm_gated

    return gemm_gated(x, fc1.detach().t(), activation="swiglu", concat_layout=("B",), **_HOW)


def swiglu_backward(
    grad_output: torch.Tensor, fc2: torch.Tensor, gate_up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """From `grad_output` [t, h] of silu(gate) up @ fc2^T: `grad_gate_up` [t, 2f], and silu(gate) up [t, f] again.

    The first is written over `gate_up`: a tile is read before it is written.
    """
    from quack.gemm_interface import gemm_dgated

    grad_gate_up, gated = gemm_dgated(grad_output, fc2.detach(), gate_up, activation="swiglu", dx_out=gate_up, **_HOW)
    return grad_gate_up, gated


def grad_x(grad_gate_up: torch.Tensor, fc1: torch.Tensor) -> torch.Tensor:
    """The gradient of x [t, h] from that of `gate_up` [t, 2f]."""
    from quack.gemm_interface import gemm

    return gemm(grad_gate_up, fc1.detach(), concat_layout=("B",), **_HOW)


def grad_fc1(grad_gate_up: torch.Tensor, x: torch.Tensor, buffer: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient of fc1 [2f, h]: added to `buffer`, fp32, where there is one; else as it is, bf16."""
    from quack.gemm_interface import gemm, gemm_add_inplace

    if buffer is None:
        return gemm(grad_gate_up.t(), x, concat_layout=("out",), **_HOW)
    gemm_add_inplace(grad_gate_up.t(), x, buffer, concat_layout=("C", "out"), **_HOW)
    return None
