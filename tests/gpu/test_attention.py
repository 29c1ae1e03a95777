"""Attention on a real GPU where a rank has fewer queries than keys, as under context parallelism."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.bias import CausalBias

from tinyllama_mcore.model import attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["auto", "flash", "sdpa"])
def test_no_mask_is_made_of_queries_x_keys(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Context and gradients are the math kernel's, whose mask is one."""
    shapes = ((1024, 2, 32, 64), (4096, 2, 4, 64), (4096, 2, 4, 64))
    inputs = [torch.randn(*shape, device="cuda").bfloat16().requires_grad_() for shape in shapes]
    outcomes = []
    for name in ("unfused", backend):
        context = attention.kernel(name)(*inputs)
        outcomes.append([context, *torch.autograd.grad(context.float().square().sum(), inputs)])
        monkeypatch.setattr(CausalBias, "_materialize", lambda *_: pytest.fail("a mask was made"))
    for right, found in zip(*outcomes, strict=True):
        assert (found.double() - right.double()).norm() / right.double().norm() < 1e-2
