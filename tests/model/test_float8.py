"""A product in float8 and both its gradients beside torchao's Float8Linear of the same recipe."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.kernels import plain
from tinyllama_mcore.model.products import Products
from tinyllama_mcore.model.weight_gradients import weight_gradient

RECIPE = "rowwise_with_gw_hp"


def _torchaos(linear: torch.nn.Linear) -> torch.nn.Module:
    """A linear layer in torchao's recipe, emulated."""
    float8 = pytest.importorskip("torchao.float8")
    config = float8.Float8LinearConfig.from_recipe_name(RECIPE)
    config = type(config)(**{**vars(config), "emulate": True})
    other = float8.convert_to_float8_training(torch.nn.Sequential(linear), config=config)
    assert type(other[0]).__name__ == "Float8Linear"
    return other


def test_a_product_and_its_gradients_are_torchaos() -> None:
    """To rounding in bf16: torchao's emulation on a CPU rounds the same numbers to float8."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(96, 48, bias=False).bfloat16()
    other = _torchaos(linear)
    x = torch.randn(32, 96).bfloat16().requires_grad_()
    right = other(x)
    gradient = torch.randn_like(right)
    right.backward(gradient)

    products = Products(kernels=plain, float8=True)
    weight = linear.weight.detach()
    found = products.product(products.operand(x.detach()), weight)
    grad_x = products.product_back(products.operand(gradient), weight)
    grad_weight = weight_gradient(weight, gradient, x.detach())
    exact = x.detach().float() @ weight.float().t()
    assert (found - exact).norm() / exact.norm() > 1e-2, "nothing was rounded to float8"
    for ours, theirs in ((found, right), (grad_x, x.grad), (grad_weight, other[0].weight.grad)):
        assert ours is not None
        assert theirs is not None
        assert (ours.float() - theirs.float()).norm() / theirs.float().norm() < 2e-3


def test_a_weight_is_scaled_by_column_for_the_gradient_of_its_input() -> None:
    """Torchao scales it as a whole there, and loses columns that are 2^-18 of the others."""
    torch.manual_seed(3)
    linear = torch.nn.Linear(96, 48, bias=False).bfloat16()
    linear.weight.data[:, :48] *= 2.0**-18
    gradient, x = torch.randn(32, 48).bfloat16(), torch.randn(32, 96).bfloat16().requires_grad_()
    _torchaos(linear)(x).backward(gradient)
    products = Products(kernels=plain, float8=True)
    ours = products.product_back(products.operand(gradient), linear.weight.detach())
    exact = (gradient.float() @ linear.weight.detach().float())[:, :48]
    assert (ours[:, :48].float() - exact).norm() / exact.norm() < 5e-2
    assert x.grad is not None
    assert (x.grad[:, :48].float() - exact).norm() / exact.norm() > 0.2
