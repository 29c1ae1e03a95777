"""Products by weights and their gradients, as fused layers take them: in bf16 or float8, SwiGLU apart or within.

Neighbours: `fused` has the layer; `kernels` what is not a product. Shapes: t tokens of a micro-batch, h hidden, f
feed-forward (f/tp on a rank).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

import torch

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.config.swiglu import obstacle, quack_version
from tinyllama_mcore.kernels import float8, quack_products
from tinyllama_mcore.kernels.float8 import Float8Rows, Float8Weight, Operand
from tinyllama_mcore.model.weight_gradients import weight_gradient


def kernels_on(device: torch.device) -> ModuleType:
    """`kernels.triton_kernels` for a GPU, `kernels.plain` for anything else."""
    if device.type == "cuda":
        from tinyllama_mcore.kernels import triton_kernels

        return triton_kernels
    from tinyllama_mcore.kernels import plain

    return plain


def keep_in_float8(weights: Iterable[torch.Tensor], device: torch.device) -> None:
    """Make weights in float8, or make them anew after they changed, for every product until the next call.

    Where an engine calls this after each update, a micro-batch casts no weight. Each gets its `float8` [out, in].
    """
    kernels = kernels_on(device)
    for weight in weights:
        rows, columns = getattr(weight, "float8", (None, None))
        made = Float8Weight(
            kernels.float8_rows(weight.detach(), rows), kernels.float8_columns(weight.detach(), columns)
        )
        weight.float8 = made  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Products:
    """Products by weights, by cuBLAS, and SwiGLU as a kernel of its own between two of them."""

    kernels: ModuleType
    float8: bool = False
    """Multiply by weights in float8, forward and for the gradient of what they multiplied (`kernels.float8`)."""

    def operand(self, x: torch.Tensor) -> Operand:
        """A matrix as the next product by a weight takes it."""
        return self.kernels.float8_rows(x) if self.float8 else x

    def product(self, x: Operand, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The product x @ weight^T of x [t, in] and weight [out, in], plus `bias` [out]."""
        if isinstance(x, Float8Rows):
            kept: Float8Weight | None = getattr(weight, "float8", None)
            made = float8.product(x, kept.rows if kept else self.kernels.float8_rows(weight), weight.dtype)
            return made if bias is None else made.add_(bias)
        return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())

    def product_back(self, grad_output: Operand, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of x [t, in] in `product`: grad_output [t, out] @ weight [out, in]."""
        if isinstance(grad_output, Float8Rows):
            kept: Float8Weight | None = getattr(weight, "float8", None)
            columns = kept.columns if kept else self.kernels.float8_columns(weight)
            return float8.product(grad_output, columns, weight.dtype)
        return grad_output @ weight

    def swiglu(self, x: Operand, fc1: torch.Tensor) -> tuple[torch.Tensor, Operand]:
        """Of x [t, h]: `gate_up` [t, 2f], gate before up, and `gated` [t, f], silu(gate) up."""
        gate_up = self.product(x, fc1)
        return gate_up, self.kernels.swiglu(gate_up, float8=self.float8)

    def swiglu_backward(
        self, grad_output: torch.Tensor, fc2: torch.Tensor, gate_up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Operand]:
        """The backward pass of `swiglu` and of the product by `fc2` [h, f] after it. Consumes `gate_up` [t, 2f].

        From `grad_output` [t, h]: `grad_gate_up` [t, 2f], silu(gate) up [t, f] again, and `grad_gate_up` again as
        `swiglu_grad_x` takes it.
        """
        grad_gated = self.product_back(self.operand(grad_output), fc2)
        return self.kernels.swiglu_backward(grad_gated, gate_up, float8=self.float8)

    def swiglu_grad_x(self, grad_gate_up: Operand, fc1: torch.Tensor) -> torch.Tensor:
        """The gradient of x [t, h] in `swiglu`."""
        return self.product_back(grad_gate_up, fc1)

    def swiglu_grad_fc1(self, fc1: torch.Tensor, grad_gate_up: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        """The gradient of `fc1` in `swiglu`: see `weight_gradient`."""
        return weight_gradient(fc1, grad_gate_up, x)


class QuackProducts(Products):
    """SwiGLU within the two products around it, on the way out of the GPU's registers (`kernels.quack_products`)."""

    def swiglu(self, x: Operand, fc1: torch.Tensor) -> tuple[torch.Tensor, Operand]:
        """See `Products`; gate and up of a feature stand side by side."""
        assert isinstance(x, torch.Tensor)
        return quack_products.swiglu(x, fc1)

    def swiglu_backward(
        self, grad_output: torch.Tensor, fc2: torch.Tensor, gate_up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Operand]:
        """See `Products`."""
        grad_gate_up, gated = quack_products.swiglu_backward(grad_output, fc2, gate_up)
        return grad_gate_up, gated, grad_gate_up

    def swiglu_grad_x(self, grad_gate_up: Operand, fc1: torch.Tensor) -> torch.Tensor:
        """See `Products`."""
        assert isinstance(grad_gate_up, torch.Tensor)
        return quack_products.grad_x(grad_gate_up, fc1)

    def swiglu_grad_fc1(self, fc1: torch.Tensor, grad_gate_up: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        """See `Products`."""
        return quack_products.grad_fc1(grad_gate_up, x, getattr(fc1, "main_grad", None))


def products_of(run: RunConfig, device: torch.device) -> Products:
    """The products of a rank's layers; those by weights in float8 are told so layer by layer."""
    make = QuackProducts if _not_quack(run, device) is None else Products
    return make(kernels=kernels_on(device))


def swiglu_backend(run: RunConfig, device: torch.device) -> str:
    """How SwiGLU is computed and why, for the start-up print."""
    reason = _not_quack(run, device)
    if reason:
        return f"SwiGLU as a kernel of its own: within the products {reason}"
    return f"SwiGLU within the products around it, by quack {quack_version()}"


def _not_quack(run: RunConfig, device: torch.device) -> str | None:
    """Why SwiGLU is not computed within its products; None where it is."""
    if run.swiglu_backend == "separate":
        return "was not asked for (--swiglu-backend separate)"
    return obstacle(run, lambda: device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0))
