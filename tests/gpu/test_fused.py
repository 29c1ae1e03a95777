"""Fused layers on a real GPU: Triton's kernels at the sizes of the 1.1B model, and a CUDA graph beside no graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Case, tell, train
from tinyllama_mcore.kernels import plain
from tinyllama_mcore.model.products import QuackProducts

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

TOKENS, BATCH, HIDDEN, HEADS, GROUPS, WIDTH, FFN, VOCABULARY = 4096, 2, 2048, 32, 4, 64, 5632, 32000


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def _close(found: torch.Tensor, right: torch.Tensor) -> None:
    assert (found.double() - right.double()).norm() / right.double().norm() < 1e-2


def test_kernels_at_full_size() -> None:
    """Every kernel against plain torch on the same inputs; rounding of bf16 alone is between them."""
    from tinyllama_mcore.kernels import triton_kernels

    x, delta, gradient, weight = (*(_draw(TOKENS, HIDDEN) for _ in range(3)), _draw(HIDDEN))
    total, _, scale = plain.add_rms_norm(x, (delta,), weight, 1e-5)
    qkv = _draw(BATCH, TOKENS // BATCH, (HEADS + 2 * GROUPS) * WIDTH)
    angles = torch.outer(torch.arange(TOKENS // BATCH, device="cuda").float(), torch.rand(WIDTH // 2, device="cuda"))
    cos, sin = angles.cos(), angles.sin()
    gate_up, logits = _draw(TOKENS, 2 * FFN), _draw(TOKENS, VOCABULARY)
    labels = torch.randint(0, VOCABULARY, (TOKENS,), device="cuda")
    log_sum, _ = plain.cross_entropy(logits, labels, 0, VOCABULARY)
    calls = {
        "add_rms_norm": lambda k: k.add_rms_norm(x, (delta,), weight, 1e-5),
        "rms_norm_backward": lambda k: k.rms_norm_backward((gradient,), total, scale, weight, delta),
        "split_rotate": lambda k: k.split_rotate(qkv, cos, sin, GROUPS),
        "split_rotate_backward": lambda k: (
            k.split_rotate_backward(*plain.split_rotate(qkv, cos, sin, GROUPS), cos, sin),
        ),
        "swiglu": lambda k: (k.swiglu(gate_up),),
        "swiglu_backward": lambda k: k.swiglu_backward(_draw(0, FFN).new_ones(TOKENS, FFN), gate_up.clone()),
        "cross_entropy": lambda k: k.cross_entropy(logits, labels, 0, VOCABULARY),
        "cross_entropy_backward": lambda k: (
            k.cross_entropy_backward(logits.clone(), labels, log_sum, log_sum.clone(), 0, VOCABULARY),
        ),
    }
    for name, call in calls.items():
        for found, right in zip(call(triton_kernels), call(plain), strict=True):
            assert torch.isfinite(found.float()).all(), name
            _close(found, right)


@pytest.mark.parametrize(("hidden", "ffn"), [(HIDDEN, FFN), (HIDDEN, FFN // 2), (192, 320)])
def test_swiglu_within_products(hidden: int, ffn: int) -> None:
    """By quack, whole, as a tensor-parallel rank has it, and small: every result and gradient against float64."""
    pytest.importorskip("quack")
    products = QuackProducts(kernels=plain)
    x, fc1, fc2 = _draw(TOKENS, hidden), _draw(2 * ffn, hidden) / 16, _draw(hidden, ffn) / 16
    gradient = _draw(TOKENS, hidden)
    exact = [a.double().requires_grad_() for a in (x, fc1)]
    gate, up = (exact[0] @ exact[1].t()).chunk(2, dim=1)
    right = torch.nn.functional.silu(gate) * up
    right.backward(gradient.double() @ fc2.double())

    gate_up, gated = products.swiglu(x, fc1)
    assert isinstance(gated, torch.Tensor)
    _close(gate_up.view(TOKENS, ffn, 2).transpose(1, 2).flatten(1), torch.cat([gate, up], dim=1))
    _close(gated, right)
    grad_gate_up, again, operand = products.swiglu_backward(gradient, fc2, gate_up)
    _close(again, right)
    assert exact[0].grad is not None
    assert exact[1].grad is not None
    _close(products.swiglu_grad_x(operand, fc1), exact[0].grad)
    grad_fc1 = products.swiglu_grad_fc1(fc1, grad_gate_up, x)
    assert grad_fc1 is not None
    _close(grad_fc1, exact[1].grad)
    fc1.main_grad = torch.ones_like(fc1, dtype=torch.float32)  # type: ignore[attr-defined]
    assert products.swiglu_grad_fc1(fc1, grad_gate_up, x) is None
    _close(fc1.main_grad - 1, exact[1].grad)  # type: ignore[attr-defined]


def test_a_graph_changes_nothing(tmp_path: Path) -> None:
    """Losses and norms of eight iterations with and without a CUDA graph: the noise of the attention kernel alone."""
    runs = {}
    for name, flags in (("graph", ""), ("no graph", " --no-cuda-graph")):
        case = Case(config="zero1", flags=f"--global-batch-size 16 --micro-batch-size 4{flags}")
        records = train(case, tmp_path / name, "--exit-interval", "8")
        runs[name] = [(r["lm_loss"], r["grad_norm"]) for r in records]
    tell("fused", case="graph beside no graph", **{name: run for name, run in runs.items()})
    for (loss, norm), (other_loss, other_norm) in zip(runs["graph"], runs["no graph"], strict=True):
        assert loss == pytest.approx(other_loss, abs=1e-3)
        assert norm == pytest.approx(other_norm, rel=2e-3)
