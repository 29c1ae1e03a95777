"""Where the gradient of a weight goes: back through autograd, or straight to the fp32 buffer that an engine keeps.

An engine that adds gradients up in fp32 gives each weight its buffer as `main_grad`, in Megatron's word; autograd is
then not to see the weight. Neighbours: `fused`, `fused_model` and `tied` have the functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

Gradients = tuple[tuple[torch.Tensor | None, ...], tuple[torch.Tensor | None, ...]]
"""Those of the inputs, and those of the weights: None where one is not asked for, or went to a `main_grad`."""


def differentiated(*weights: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The weights that there are, as autograd has to know them: none where every gradient goes to a `main_grad`.

    Autograd would otherwise end each backward pass by waiting for the stream on which it met a weight first, which no
    CUDA graph holds.
    """
    there = tuple(weight for weight in weights if weight is not None)
    return () if all(hasattr(weight, "main_grad") for weight in there) else there


def weight_gradient(weight: torch.Tensor, grad_output: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """The gradient of `weight` [out, in] in x [t, in] @ weight^T, from that of the product [t, out].

    Where the engine keeps an fp32 buffer, `weight.main_grad`, the product is added there and None is returned: the
    words of Megatron's `gradient_accumulation_fusion`, by one call of cuBLAS (torch 2.11: `addmm` with `out_dtype`).
    """
    buffer = getattr(weight, "main_grad", None)
    if buffer is None:
        return grad_output.t() @ x
    if grad_output.dtype is buffer.dtype:
        buffer.addmm_(grad_output.t(), x)
    elif grad_output.is_cuda:
        torch.addmm(buffer, grad_output.t(), x, out_dtype=buffer.dtype, out=buffer)
    else:
        buffer.add_(grad_output.t().to(buffer.dtype) @ x.to(buffer.dtype))
    return None


def added_gradient(weight: torch.Tensor, grad_weight: torch.Tensor) -> torch.Tensor | None:
    """The gradient of `weight` from fp32: added to `weight.main_grad`; in the dtype of `weight` where there is none."""
    buffer = getattr(weight, "main_grad", None)
    if buffer is None:
        return grad_weight.to(weight.dtype)
    buffer.add_(grad_weight)
    return None


class WeightFunction(torch.autograd.Function):
    """An autograd function of inputs and weights, called by `of`; a subclass has its maths.

    `compute(ctx, *inputs)` gives the outputs, `gradients(ctx, *grad_outputs)` the `Gradients`. Both find `ctx.setup`
    and `ctx.weights` as `of` was given them, and the number of inputs as `ctx.inputs`.
    """

    @classmethod
    def of(cls, setup: Any, weights: tuple[torch.Tensor | None, ...], *inputs: torch.Tensor) -> Any:  # noqa: ANN401
        """What it computes. `setup` is all that it needs besides tensors; a weight may be None."""
        # autograd looks at arguments, not into them: of `weights` it sees nothing
        return cls.apply(cls, setup, weights, len(inputs), *inputs, *differentiated(*weights))

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:  # noqa: ANN401
        """As autograd calls it, with the arguments of `apply`."""
        ctx.function, ctx.setup, ctx.weights, ctx.inputs, *tensors = arguments
        return ctx.function.compute(ctx, *tensors[: ctx.inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """As autograd calls it: a gradient for each argument."""
        grad_inputs, grad_weights = ctx.function.gradients(ctx, *grad_outputs)
        there = [grad for weight, grad in zip(ctx.weights, grad_weights, strict=True) if weight is not None]
        arguments = (None, None, None, None, *grad_inputs, *there)
        return arguments[: len(ctx.needs_input_grad)]  # without the weights where autograd sees none
