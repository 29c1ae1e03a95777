"""The 1.1B model on real GPUs: ZeRO-1 and ZeRO-3 on one, TP 2 and ZeRO-3 on two, all on the built-in corpus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1200)]

BF16_NOISE = 0.15
"""Nats: largest difference of losses between two layouts in bf16 over 50 iterations.

Twice what the order of accumulation alone made on an H200 (0.074, docs/performance.md).
"""
ITERATIONS = 50


def train(home: Path, zero: int, *, gpus: int, tp: int = 1) -> list[float]:
    """The losses of 50 iterations of the 1.1B recipe at 64 sequences an iteration."""
    metrics = home / f"zero{zero}-tp{tp}-gpus{gpus}.jsonl"
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(gpus)),
        *("--master_port", str(ranks.free_port()), str(ranks.CHECKOUT / "examples" / "pretrain_tinyllama.py")),
        *("--deepspeed_config", str(ranks.CHECKOUT / "ds_configs" / f"zero{zero}.json"), "--recipe", "tinyllama-1.1b"),
        *("--global-batch-size", "64", "--lr-warmup-iters", "10", "--exit-interval", str(ITERATIONS)),
        *("--tensor-model-parallel-size", str(tp), "--metrics-file", str(metrics)),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ranks.CHECKOUT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [record["lm_loss"] for record in ranks.metrics(metrics)]


def largest_difference(one: list[float], other: list[float]) -> float:
    """Over all iterations."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_zero_stages_agree_on_one_gpu(tmp_path: Path) -> None:
    """ZeRO-1 against ZeRO-3."""
    one, three = (train(tmp_path, zero, gpus=1) for zero in (1, 3))
    assert len(one) == ITERATIONS
    assert one[-1] < one[0] - 1
    assert largest_difference(one, three) < BF16_NOISE


def test_layouts_agree_on_two_gpus(tmp_path: Path) -> None:
    """TP 2 and ZeRO-3 against ZeRO-1 on one GPU."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    alone = train(tmp_path, 1, gpus=1)
    assert largest_difference(alone, train(tmp_path, 1, gpus=2, tp=2)) < BF16_NOISE
    assert largest_difference(alone, train(tmp_path, 3, gpus=2)) < BF16_NOISE


@pytest.mark.parametrize("backend", ["auto", "flash", "cudnn", "sdpa"])
def test_attention_kernels_agree(backend: str) -> None:
    """Each kernel in bf16 against the unfused one in fp32, forward and backward."""
    from tinyllama_mcore.model.attention import kernel

    shapes = ((256, 2, 32, 64), (256, 2, 4, 64), (256, 2, 4, 64))  # [s, b, n, d], [s, b, g, d] twice
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    exact = kernel("unfused")(*inputs)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    half = [x.detach().bfloat16().requires_grad_() for x in inputs]
    fast = kernel(backend)(*half)
    found = torch.autograd.grad(fast.float().square().sum(), half)
    for value, reference in zip((fast, *found), (exact, *expected), strict=True):
        assert (value.float() - reference).norm() / reference.norm() < 1e-2
