"""What gives the same bits twice on a real GPU, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.conftest import Case, tell, train
from tests.gpu.test_memory import TP2
from tinyllama_mcore.parallel.deterministic import deterministic

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

CASES = {  # name -> DeepSpeed JSON, micro batch and other flags, GPUs
    "ZeRO-1": ("zero1", "4", 1),
    "FSDP": ("fsdp", "4", 1),
    "ZeRO-1, data 2": ("zero1", "4", 2),
    "ZeRO-1, tensor 2": ("zero1", f"4 {TP2} --recipe qwen2.5-0.5b", 2),
}


def _gradients(backend: SDPBackend, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    query, key, value = inputs
    with sdpa_kernel([backend]):
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return torch.autograd.grad(context, inputs, torch.ones_like(context))


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(
    "backend", [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], ids=lambda each: each.name
)
def test_a_kernel_of_attention(backend: SDPBackend, wanted: bool) -> None:
    """Gradients are the same bits each time where torch is asked for that; cuDNN is not there then."""
    inputs = [
        torch.randn(8, heads, 2048, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (32, 4, 4)
    ]
    with deterministic(wanted):
        if wanted and backend == SDPBackend.CUDNN_ATTENTION:
            with pytest.raises(RuntimeError, match="No available kernel"):
                _gradients(backend, inputs)
            return
        first = _gradients(backend, inputs)
        again = [_gradients(backend, inputs) for _ in range(8)]
    same = all(torch.equal(one, other) for each in again for one, other in zip(first, each, strict=True))
    tell("deterministic", backend=backend.name, wanted=wanted, same=same)
    assert same or not wanted


@pytest.mark.parametrize("name", CASES)
def test_a_run_and_its_resumption_are_the_same_bits(name: str, tmp_path: Path) -> None:
    """Ten iterations, beside five and five that resume from a checkpoint."""
    config, flags, world = CASES[name]
    if world > torch.cuda.device_count():
        pytest.skip(f"needs {world} GPUs")
    batch = "--recipe tinyllama-120m --global-batch-size 16 --lr-warmup-iters 5 --micro-batch-size"
    case = Case(config=config, flags=f"{batch} {flags} --deterministic-mode", world=world)
    whole = train(case, tmp_path / "whole", "--exit-interval", "10")
    parts = [
        train(case, tmp_path / part, "--exit-interval", "5", "--save", str(tmp_path / "checkpoints"))
        for part in ("first", "rest")
    ]
    rows = [[(r["iteration"], r["lm_loss"], r["grad_norm"]) for r in records] for records in (whole, *parts)]
    tell("deterministic", name=name, rows=rows, speed=whole[-1]["tokens_per_s_per_gpu"])
    assert [row[0] for row in rows[2]] == [6, 7, 8, 9, 10]
    assert rows[0] == rows[1] + rows[2]
