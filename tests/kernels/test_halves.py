"""Master weights in two halves: nothing is lost, and AdamW over them is torch's."""

from __future__ import annotations

import pytest
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


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)])
@pytest.mark.parametrize("kernels", ["plain", "triton"])
def test_updates_are_torchs(kernels: str, betas: tuple[float, float], request: pytest.FixtureRequest) -> None:
    """Ten updates beside torch.optim.AdamW over fp32 weights: masters and moments to rounding.

    On a GPU a kernel that subtracts 0.999 from 1 by itself is 1.3e-5 off; Triton's interpreter subtracts in fp64.
    """
    k = plain if kernels == "plain" else request.getfixturevalue("triton_kernels")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(2)
    start, lr, eps, decay = torch.randn(1000, device=device), 1e-2, 1e-8, 0.1
    reference = torch.nn.Parameter(start.clone())
    adam = torch.optim.AdamW([reference], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    weights, rest = _split(start)
    moments = (torch.zeros_like(start), torch.zeros_like(start))
    for step in range(1, 11):
        gradient = torch.randn_like(start)
        reference.grad = gradient / 2
        adam.step()
        scalars = torch.tensor(
            [2.0, 1 - lr * decay, lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5, 1.0], device=device
        )
        k.adamw(weights, rest, moments, gradient, scalars, betas, eps)
    found = torch.empty_like(start)
    halves.join(found, weights, rest)
    torch.testing.assert_close(found, reference.detach(), rtol=1e-6, atol=1e-6)
    for own, name, atol in zip(
        moments, ("exp_avg", "exp_avg_sq"), (1e-7, 0.0), strict=True
    ):  # nothing cancels in squares
        torch.testing.assert_close(own, adam.state[reference][name], rtol=1e-6, atol=atol)
