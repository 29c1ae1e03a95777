"""Predicted speed against what H100s and H200s gave: near, and in the same order."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.planning.test_memory import CONTEXT, EACH, INTERLEAVED, LOCAL, PIPELINE, TENSOR, paper
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import gpus, throughput

H100, H200 = gpus.find("h100"), gpus.find("h200")

COMPILED, NO_GRAPH = "--compile", "--no-cuda-graph"
FULL, SELECTIVE = ("--recompute-granularity", "full"), ("--recompute-granularity", "selective")


def row(world: int, micro: int, json_name: str, *flags: str) -> RunConfig:
    """Local layers, 16 sequences an iteration."""
    return paper(world, micro, json_name, *flags, *LOCAL, global_batch=16)


# tokens/s per GPU, 1.1B at 2048 tokens: docs/evidence/local-layers.md, but for ZeRO-2, ZeRO-3 and FSDP on one GPU,
# which run otherwise since
ON_H100 = [
    (row(2, 4, "zero1"), 48_245),
    (row(2, 4, "zero2"), 46_398),
    (row(2, 8, "zero1", *TENSOR), 45_081),
    (row(2, 8, "zero1", *TENSOR, "--sequence-parallel"), 41_534),
    (row(2, 8, "zero1", *CONTEXT), 39_545),
    (row(1, 2, "zero1"), 35_572),
    (row(2, 4, "zero3"), 33_797),
    (row(2, 2, "zero1", *PIPELINE, *INTERLEAVED), 32_607),
    (row(2, 2, "zero1", *PIPELINE), 29_897),
    (row(1, 1, "zero1"), 18_663),
]
ON_H200 = [
    (row(1, 8, "zero1", COMPILED), 67_964),
    (row(1, 8, "zero1"), 61_447),
    (row(1, 16, "zero1", *SELECTIVE), 58_673),
    (row(1, 4, "zero1"), 56_069),
    (row(2, 4, "zero1"), 52_016),
    (row(2, 8, "zero1", *TENSOR), 48_463),
    (row(1, 8, "zero1", *FULL), 47_605),
    (row(2, 4, EACH), 39_287),
    (row(2, 4, "fsdp", *PIPELINE), 33_388),
    (row(2, 4, "zero3"), 32_060),
    (row(1, 8, "zero3_offload"), 8_322),
]


ON_ANOTHER_H100 = [
    (row(1, 4, "zero1", COMPILED), 63_012),
    (row(1, 8, "zero1"), 58_633),
    (row(2, 4, "zero1", COMPILED), 57_547),
    (row(2, 4, "zero2", COMPILED), 55_031),
    (row(1, 2, "zero1", COMPILED), 54_128),
    (row(2, 4, EACH, COMPILED), 48_246),
    (row(2, 4, "zero2"), 47_724),
    (row(2, 8, "zero1", *TENSOR, "--sequence-parallel"), 42_750),
    (row(1, 1, "zero1", COMPILED), 42_163),
    (row(2, 4, "zero3", COMPILED), 41_935),
    (row(2, 8, "zero1", *CONTEXT), 40_623),
    (row(1, 1, "zero1"), 23_444),
]
ON_A_THIRD = [
    (row(2, 8, "zero1", *TENSOR, COMPILED), 52_051),
    (row(2, 2, "zero1", *PIPELINE, *INTERLEAVED), 35_010),
    (row(2, 2, "zero1", *PIPELINE), 34_330),
    (row(4, 8, "zero3", *TENSOR), 33_481),
    (row(4, 4, "zero1", *TENSOR, "--sequence-parallel", *PIPELINE), 21_707),
]
FUSED = [  # without a graph the host's best of micro batch 1, whose median was 39,100; FSDP between 74,800 and 75,900
    (paper(1, 16, "zero1", global_batch=64), 78_200),
    (paper(1, 8, "zero1", global_batch=64), 77_500),
    (paper(1, 8, "zero1", NO_GRAPH, global_batch=64), 75_800),
    (paper(1, 8, "fsdp", global_batch=64), 75_350),
    (paper(1, 8, "zero1", COMPILED, global_batch=64), 68_900),
    (paper(1, 1, "zero1", global_batch=16), 66_700),
    (paper(1, 1, "zero1", NO_GRAPH, global_batch=16), 46_100),
]


def other(gpu: gpus.Gpu, work: float, host: float) -> gpus.Gpu:
    """The same GPU in another machine: no two gave the same."""
    return dataclasses.replace(gpu, bf16_flops=work * gpu.bf16_flops, hbm=work * gpu.hbm, host=host)


@pytest.mark.parametrize(
    ("gpu", "rows", "near"),
    [
        (H100, ON_H100, 0.05),
        (H200, ON_H200, 0.05),
        (other(H100, 0.99, 1.18), ON_ANOTHER_H100, 0.06),
        (other(H100, 0.96, 1.12), ON_A_THIRD, 0.05),
        (other(H100, 1.00, 1.15), FUSED, 0.05),
    ],
    ids=["H100", "H200", "another", "third", "fused"],
)
def test_speeds_of_real_gpus(gpu: gpus.Gpu, rows: list[tuple[RunConfig, int]], near: float) -> None:
    """Each within 5 or 6%, and in the measured order where that is by more than 5%: rates vary by as much."""
    predicted = [throughput.tokens_per_second(run, gpu) for run, _ in rows]
    assert predicted == pytest.approx([speed for _, speed in rows], rel=near)
    for (slower, (_, slow)), (faster, (_, fast)) in itertools.permutations(zip(predicted, rows, strict=True), 2):
        assert slower < faster or fast <= 1.05 * slow


def test_an_iteration_is_the_sum_of_its_parts() -> None:
    """And a bubble is (p - 1) / m of the work, as long as nothing else waits."""
    alone, cut = paper(2, 16, "zero1", "--compile"), paper(2, 16, "zero1", "--compile", *PIPELINE)
    assert throughput.iteration(alone, H200).bubble == 0
    seconds = throughput.iteration(cut, H200)
    work = seconds.matmul + seconds.attention + seconds.memory
    assert seconds.bubble == pytest.approx(work / cut.num_micro_batches, rel=0.1)


def test_a_graph_leaves_the_host_nothing() -> None:
    """A host half as fast changes nothing where passes are replayed, and much where they are not."""
    slow = dataclasses.replace(H100, host=0.5)
    replayed = [
        paper(1, 1, "zero1"),
        paper(1, 1, "zero3"),
        paper(2, 1, "zero1"),
        paper(2, 1, "zero1", *TENSOR),
    ]
    driven = [
        *(paper(1, 1, "zero1", NO_GRAPH), paper(1, 1, "fsdp"), paper(2, 1, "zero3")),
        paper(2, 1, "zero1", *TENSOR, "--no-tp-comm-overlap"),
        paper(1, 1, "zero1", *LOCAL),
    ]
    for run in replayed:
        assert throughput.tokens_per_second(run, slow) == pytest.approx(throughput.tokens_per_second(run, H100))
    for run in driven:
        assert throughput.tokens_per_second(run, slow) < 0.8 * throughput.tokens_per_second(run, H100)


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
