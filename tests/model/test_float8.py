"""A product in float8 and both its gradients beside torchao's Float8Linear of the same recipe."""

from __future__ import annotations

import pytest
import torch

from tinyllama_mcore.kernels import plain
from tinyllama_mcore.model.products import Products, weight_gradient

RECIPE = "rowwise_with_gw_hp"


def test_a_product_and_its_gradients_are_torchaos() -> None:
    """To rounding in bf16: torchao's emulation on a CPU rounds the same numbers to float8."""
    float8 = pytest.importorskip("torchao.float8")
    torch.manual_seed(3)
    linear = torch.nn.Linear(96, 48, bias=False).bfloat16()
    config = float8.Float8LinearConfig.from_recipe_name(RECIPE)
    config = type(config)(**{**vars(config), "emulate": True})
    other = float8.convert_to_float8_training(torch.nn.Sequential(linear), config=config)
    assert type(other[0]).__name__ == "Float8Linear"
    x = torch.randn(32, 96).bfloat16().requires_grad_()
    right = other(x)
    gradient = torch.randn_like(right)
    right.backward(gradient)

    products = Products(kernels=plain, float8=True)
    weight = linear.weight.detach()
    found = products.product(products.operand(x.detach()), weight)
    of_x = products.product_back(products.operand(gradient), weight)
    of_weight = weight_gradient(weight, gradient, x.detach())
    exact = x.detach().float() @ weight.float().t()
    assert (found - exact).norm() / exact.norm() > 1e-2, "nothing was rounded to float8"
    for ours, theirs in ((found, right), (of_x, x.grad), (of_weight, other[0].weight.grad)):
        assert ours is not None
        assert theirs is not None
        assert (ours.float() - theirs.float()).norm() / theirs.float().norm() < 2e-3
