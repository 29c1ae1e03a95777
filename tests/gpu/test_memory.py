"""Peak memory of one rank of many layouts of the 1.1B model, measured on one GPU, is what the planner says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.conftest import Case, peak_memory_gib, tell
from tinyllama_mcore.config import cli
from tinyllama_mcore.planning import memory

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]

TP2, PP2, CP2 = (f"--{axis}-parallel-size 2" for axis in ("tensor-model", "pipeline-model", "context"))
SP, VPP2 = "--sequence-parallel", "--virtual-pipeline-model-parallel-size 2"
FULL, SELECTIVE = (f"--recompute-granularity {kind}" for kind in ("full", "selective"))
FSDP = '{"bf16": {"enabled": true}, "gradient_clipping": "auto", "fsdp": %s}'


def case(config: str, world: int, micro_batch: int, *flags: str, rank: int = 0, micro_batches: int = 2) -> Case:
    """A layout with that many micro-batches an iteration."""
    sizes = [int(flag.split()[1]) for flag in flags if flag in (TP2, PP2, CP2)]
    data = world
    for size in sizes:
        data //= size
    batch = f"--micro-batch-size {micro_batch} --global-batch-size {micro_batch * micro_batches * data}"
    return Case(config=config, flags=" ".join([batch, *flags]), world=world, rank=rank)


CASES = {
    "ZeRO-1": case("zero1", 1, 8),
    "ZeRO-1, data 16": case("zero1", 16, 8),
    "ZeRO-2, data 2": case("zero2", 2, 8),
    "ZeRO-3": case("zero3", 1, 8),
    "ZeRO-3, data 16": case("zero3", 16, 8),
    "FSDP, data 16": case("fsdp", 16, 8),
    "FSDP keeping weights, data 16": case(FSDP % '{"sharding_strategy": "shard_grad_op"}', 16, 8),
    "FSDP hybrid 8, data 16": case(FSDP % '{"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 8}', 16, 8),
    "ZeRO-1, data 8, micro batch 4": case("zero1", 8, 4),
    "ZeRO-1, data 8, selective recompute": case("zero1", 8, 8, SELECTIVE),
    "ZeRO-1, data 8, full recompute": case("zero1", 8, 8, FULL),
    "FSDP, data 8, full recompute": case("fsdp", 8, 16, FULL),
    "ZeRO-1, tensor 2": case("zero1", 2, 8, TP2),
    "ZeRO-1, tensor 2 and sequence": case("zero1", 2, 8, TP2, SP),
    "ZeRO-3, tensor 2 and sequence, data 4": case("zero3", 8, 8, TP2, SP),
    "ZeRO-1, pipeline 2, first rank": case("zero1", 2, 8, PP2, micro_batches=4),
    "ZeRO-1, pipeline 2, last rank": case("zero1", 2, 8, PP2, rank=1, micro_batches=4),
    "ZeRO-2, pipeline 2 interleaved, data 2": case("zero2", 4, 4, PP2, VPP2, micro_batches=4),
    "FSDP, pipeline 2, data 4": case("fsdp", 8, 8, PP2, micro_batches=4),
    "ZeRO-1, context 2, data 4": case("zero1", 8, 8, CP2),
    "ZeRO-1, tensor 2 and sequence, pipeline 2, data 2": case("zero1", 8, 8, TP2, SP, PP2, micro_batches=4),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_memory(name: str, tmp_path: Path) -> None:
    """Within 5 % of `max_memory_allocated`."""
    chosen = CASES[name]
    run = cli.parse(chosen.argv(tmp_path), world_size=chosen.world, has_gpu=lambda: True)
    ranks_of_a_stage = chosen.world // run.layout.pipeline_model_parallel_size
    predicted = memory.by_rank(run)[chosen.rank // ranks_of_a_stage].total / 2**30
    measured = peak_memory_gib(chosen, tmp_path)
    tell("memory", case=name, world=chosen.world, flags=chosen.flags, measured=measured, predicted=predicted)
    assert predicted == pytest.approx(measured, rel=0.05)
