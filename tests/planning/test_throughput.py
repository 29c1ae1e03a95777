"""Predicted speed against what H100s and H200s gave: near, and in the same order."""

from __future__ import annotations

import pytest

from tests.planning.test_memory import CONTEXT, INTERLEAVED, PIPELINE, TENSOR, paper
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import gpus, throughput

H100, H200 = gpus.find("h100"), gpus.find("h200")

# tokens/s per GPU, 1.1B at 2048 tokens, fastest first: docs/planning.md says where
MEASURED = [
    (paper(2, 4, "zero1", global_batch=16), 48_245),
    (paper(2, 4, "zero2", global_batch=16), 46_398),
    (paper(2, 8, "zero1", *TENSOR, global_batch=16), 45_081),
    (paper(2, 8, "zero1", *TENSOR, "--sequence-parallel", global_batch=16), 41_534),
    (paper(2, 8, "zero1", *CONTEXT, global_batch=16), 39_545),
    (paper(1, 2, "zero1", global_batch=16), 35_572),
    (paper(2, 4, "zero3", global_batch=16), 33_797),
    (paper(2, 2, "zero1", *PIPELINE, *INTERLEAVED, global_batch=16), 32_607),
    (paper(2, 2, "zero1", *PIPELINE, global_batch=16), 29_897),
    (paper(1, 1, "zero1", global_batch=16), 18_663),
]
MEASURED_COMPILED = [
    (paper(2, 16, "zero1", "--compile"), 71_100),
    (paper(2, 16, "fsdp", "--compile"), 68_400),
    (paper(2, 16, "zero1", "--compile", *PIPELINE), 62_600),
]


@pytest.mark.parametrize(("gpu", "rows"), [(H100, MEASURED), (H200, MEASURED_COMPILED)], ids=["H100", "H200"])
def test_speeds_of_real_gpus(gpu: gpus.Gpu, rows: list[tuple[RunConfig, int]]) -> None:
    """Each within 5%, and all in the measured order."""
    predicted = [throughput.tokens_per_second(run, gpu) for run, _ in rows]
    assert predicted == pytest.approx([speed for _, speed in rows], rel=0.05)
    assert predicted == sorted(predicted, reverse=True)


def test_an_iteration_is_the_sum_of_its_parts() -> None:
    """And a bubble is (p - 1) / m of the work, as long as nothing else waits."""
    alone, cut = paper(2, 16, "zero1", "--compile"), paper(2, 16, "zero1", "--compile", *PIPELINE)
    assert throughput.iteration(alone, H200).bubble == 0
    seconds = throughput.iteration(cut, H200)
    work = seconds.matmul + seconds.attention + seconds.memory
    assert seconds.bubble == pytest.approx(work / cut.num_micro_batches, rel=0.1)


def test_what_costs_time_costs_it() -> None:
    """Recompute, a network between tensor-parallel ranks of more nodes, and offload each slow a run down."""
    base = paper(16, 8, "zero3", global_batch=1024)
    for slower in (
        paper(16, 8, "zero3", "--recompute-granularity", "full", global_batch=1024),
        paper(16, 8, "zero3", *TENSOR, global_batch=1024),
        paper(16, 8, "zero3_offload", global_batch=1024),
        paper(16, 1, "zero3", global_batch=1024),
    ):
        assert throughput.tokens_per_second(slower, H200) < throughput.tokens_per_second(base, H200)
