"""Master weights in two halves: nothing is lost, and AdamW over them is torch's."""

from __future__ import annotations

import torch

from tinyllama_mcore.kernels import halves, plain


def _split(masters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, rest = torch.empty_like(masters, dtype=torch.bfloat16), torch.empty_like(masters, dtype=torch.int16)
    halves.split(masters, weights, rest)
    return weights, rest


def test_every_number_comes_back() -> None:
    """Random bits and the corners: ties, zeros, the largest, what is not finite, denormals."""
    torch.manual_seed(1)
    drawn = torch.randint(-(2**31), 2**31 - 1, (1_000_000,))
    corners = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, -(2**23), 0, -(2**31), 1, 0x8000, 0x7FFF, 0x7FC00001]
    masters = torch.cat([drawn, torch.tensor(corners)]).to(torch.int32).view(torch.float32)
    found = torch.empty_like(masters)
    weights, rest = _split(masters)
    halves.join(found, weights, rest)
    assert torch.equal(found.view(torch.int32), masters.view(torch.int32))
    finite = torch.isfinite(masters)
    ties = masters.view(torch.int32) & 0xFFFF == 0x8000
    assert torch.equal(weights[finite & ~ties], masters[finite & ~ties].bfloat16())
    assert (weights[finite & ties].float().abs() >= masters[finite & ties].abs()).all(), "a tie goes away from zero"


def test_updates_are_torchs() -> None:
    """Ten updates beside torch.optim.AdamW over fp32 weights: masters and moments to rounding."""
    torch.manual_seed(2)
    start, lr, betas, eps, decay = torch.randn(1000), 1e-2, (0.9, 0.95), 1e-8, 0.1
    reference = torch.nn.Parameter(start.clone())
    adam = torch.optim.AdamW([reference], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    weights, rest = _split(start)
    moments = (torch.zeros(1000), torch.zeros(1000))
    for step in range(1, 11):
        gradient = torch.randn(1000)
        reference.grad = gradient / 2
        adam.step()
        scalars = torch.tensor(
            [2.0, 1 - lr * decay, lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5, 1.0], dtype=torch.float32
        )
        plain.adamw(weights, rest, moments, gradient, scalars, betas, eps)
    found = torch.empty(1000)
    halves.join(found, weights, rest)
    torch.testing.assert_close(found, reference.detach(), rtol=1e-6, atol=1e-6)
    for own, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
        torch.testing.assert_close(own, adam.state[reference][name], rtol=1e-6, atol=1e-7)
