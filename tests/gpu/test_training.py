"""The 1.1B model on real GPUs: every layout that fits the machine learns what ZeRO-1 on one GPU learns."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Case, tell, train
from tests.gpu.test_memory import CP2, FSDP, FULL, PP2, SELECTIVE, SP, TP2, VPP2

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1200)]

BATCH = "--global-batch-size 16 --micro-batch-size"
LONG = {  # 100 iterations: name -> DeepSpeed JSON, micro batch and other flags, GPUs
    "ZeRO-1": ("zero1", "8", 1),
    "ZeRO-1, micro batch 4": ("zero1", "4", 1),
    "ZeRO-1, full recompute": ("zero1", f"8 {FULL}", 1),
    "ZeRO-2": ("zero2", "8", 1),
    "ZeRO-3": ("zero3", "8", 1),
    "FSDP": ("fsdp", "8", 1),
    "FSDP, weights kept": (FSDP % '{"sharding_strategy": "shard_grad_op"}', "8", 1),
    "ZeRO-1 compiled": ("zero1", "8 --compile", 1),
    "ZeRO-3 compiled": ("zero3", "8 --compile", 1),
    "FSDP compiled": ("fsdp", "8 --compile", 1),
    "ZeRO-1, data 2": ("zero1", "4", 2),
    "ZeRO-2, data 2": ("zero2", "4", 2),
    "ZeRO-3, data 2": ("zero3", "4", 2),
    "FSDP, data 2": ("fsdp", "4", 2),
    "ZeRO-1 compiled, data 2": ("zero1", "4 --compile", 2),
    "ZeRO-2 compiled, data 2": ("zero2", "4 --compile", 2),
    "ZeRO-3 compiled, data 2": ("zero3", "4 --compile", 2),
    "ZeRO-1, tensor 2": ("zero1", f"8 {TP2}", 2),
    "ZeRO-1 compiled, tensor 2": ("zero1", f"8 --compile {TP2}", 2),
    "ZeRO-1, tensor 2 and sequence": ("zero1", f"8 {TP2} {SP}", 2),
    "ZeRO-1, pipeline 2": ("zero1", f"2 {PP2}", 2),
    "ZeRO-1, pipeline 2 interleaved": ("zero1", f"2 {PP2} {VPP2}", 2),
    "ZeRO-1, context 2": ("zero1", f"8 {CP2}", 2),
    "ZeRO-1 compiled, context 2": ("zero1", f"8 --compile {CP2}", 2),
    "FSDP compiled, data 2": ("fsdp", "4 --compile", 2),
    "ZeRO-1, data 4": ("zero1", "4", 4),
}
SHORT = {  # 30 iterations
    "ZeRO-1, selective recompute": ("zero1", f"16 {SELECTIVE}", 1),
    "ZeRO-2 compiled": ("zero2", "8 --compile", 1),
    "FSDP, pipeline 2": ("fsdp", f"4 {PP2}", 2),
    "FSDP in groups of 2, data 4": (FSDP % '{"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 2}', "4", 4),
    "ZeRO-3, data 4": ("zero3", "4", 4),
    "ZeRO-3, tensor 2, data 2": ("zero3", f"8 {TP2}", 4),
    "ZeRO-1, tensor 2 and sequence, pipeline 2": ("zero1", f"4 {TP2} {SP} {PP2}", 4),
    "ZeRO-1 compiled, tensor 2, pipeline 2": ("zero1", f"4 --compile {TP2} {PP2}", 4),
    "FSDP, offloaded": (FSDP % '{"cpu_offload": true}', "8", 1),
    "ZeRO-3, offloaded": ("zero3_offload", "8", 1),
}
ALIKE = ("ZeRO-1", "ZeRO-1, micro batch 4", "ZeRO-1, full recompute")
"""The same arithmetic, but for the order of sums: what they are apart is noise."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict]]:
    """The metrics of a case; each is trained once, and its figures are told."""
    done: dict[str, list[dict]] = {}

    def run(name: str) -> list[dict]:
        if name not in done:
            iterations, (config, flags, world) = (100, LONG[name]) if name in LONG else (30, SHORT[name])
            case = Case(config=config, flags=f"{BATCH} {flags}", world=world)
            if case.world > torch.cuda.device_count():
                pytest.skip(f"needs {case.world} GPUs")
            done[name] = train(case, tmp_path_factory.mktemp("job"), "--exit-interval", str(iterations))
            steady = done[name][10:]
            tell(
                "training",
                case=name,
                iterations=iterations,
                world=case.world,
                tokens_per_s_per_gpu=statistics.median(r["tokens_per_s_per_gpu"] for r in steady),
                mfu=statistics.median(r["mfu"] or 0 for r in steady),
                mfu_causal=statistics.median(r["mfu_causal"] or 0 for r in steady),
                peak_memory_gib=done[name][-1]["peak_memory_gib"],
                losses=[r["lm_loss"] for r in done[name]],
                norms=[r["grad_norm"] for r in done[name]],
            )
        return done[name]

    return run


def apart(one: list[dict], other: list[dict]) -> float:
    """Root of the mean square of what losses differ by, over the iterations that both have."""
    return math.sqrt(statistics.fmean((a["lm_loss"] - b["lm_loss"]) ** 2 for a, b in zip(one, other, strict=False)))


def last(records: list[dict], end: int) -> float:
    """Mean loss of the ten iterations up to `end`."""
    return statistics.mean(r["lm_loss"] for r in records[end - 10 : end])


@pytest.mark.parametrize("name", [name for name in [*LONG, *SHORT] if name not in ALIKE])
def test_every_layout_learns_the_same(name: str, run_of: Callable[[str], list[dict]]) -> None:
    """Within twice the noise; the last losses within 0.5 %."""
    reference = run_of("ZeRO-1")
    noise = max(apart(run_of(one), run_of(other)) for one, other in itertools.combinations(ALIKE, 2))
    records = run_of(name)
    assert records[0]["lm_loss"] == pytest.approx(reference[0]["lm_loss"], abs=2e-3)
    assert records[0]["grad_norm"] == pytest.approx(reference[0]["grad_norm"], rel=2e-3)
    assert apart(records, reference) <= 2 * noise
    assert last(records, len(records)) == pytest.approx(last(reference, len(records)), rel=5e-3)


def test_documents_apart_in_the_fused_kernel(tmp_path: Path) -> None:
    """The variable-length kernel in bf16 against every document alone in fp32, forward and backward."""
    from tinyllama_mcore.model import documents
    from tinyllama_mcore.model.attention import kernel

    starts = torch.tensor([0, 5, 300, 301, 512], dtype=torch.int32, device="cuda")
    exact = [torch.randn(512, heads, 64, device="cuda", requires_grad=True) for heads in (32, 4, 4)]
    expected = documents.attend(kernel("unfused"), *exact, documents.packed(starts))
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    found = documents.attend(kernel("auto"), *half, documents.packed(starts))
    gradients = torch.autograd.grad(found.float().square().sum(), half)
    right = torch.autograd.grad(expected.square().sum(), exact)
    for value, reference in zip((found, *gradients), (expected, *right), strict=True):
        assert (value.float() - reference).norm() / reference.norm() < 1e-2


@pytest.mark.parametrize("backend", ["auto", "flash", "cudnn", "sdpa"])
@pytest.mark.parametrize("queries", [256, 128])
def test_attention_kernels_agree(backend: str, queries: int) -> None:
    """Each kernel in bf16 against the unfused one in fp32, forward and backward; also for the end of a sequence."""
    from tinyllama_mcore.model.attention import kernel

    shapes = ((queries, 2, 32, 64), (256, 2, 4, 64), (256, 2, 4, 64))  # [s, b, n, d], [t, b, g, d] twice
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    exact = kernel("unfused")(*inputs)
    expected = torch.autograd.grad(exact.square().sum(), inputs)
    half = [x.detach().bfloat16().requires_grad_() for x in inputs]
    fast = kernel(backend)(*half)
    found = torch.autograd.grad(fast.float().square().sum(), half)
    for value, reference in zip((fast, *found), (exact, *expected), strict=True):
        assert (value.float() - reference).norm() / reference.norm() < 1e-2
