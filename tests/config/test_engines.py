"""How an engine runs what a JSON asks for. What follows from it in a real engine: tests/engine, tests/planning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import RunConfig

BF16 = {"bf16": {"enabled": True}}
HYBRID = {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 1}
TENSOR, PIPELINE = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
CONTEXT, LOCAL = ("--context-parallel-size", "2"), ("--transformer-impl", "local")
NO_COPIES = (*TENSOR, "--no-tp-comm-overlap")


class Choice(NamedTuple):
    """What an engine does."""

    name: str
    """With the stage that runs."""
    adds: bool = False
    """In the matrix product, to an fp32 gradient."""
    replays: bool = False
    """A CUDA graph."""
    keeps: bool = False
    """FSDP's weights, through an iteration."""


def zero(stage: int, *, dtype: str = "fp32", **more: Any) -> dict[str, Any]:  # noqa: ANN401  a JSON's values
    """The JSON of a stage that adds gradients up in `dtype`."""
    return {**BF16, "data_types": {"grad_accum_dtype": dtype}, "zero_optimization": {"stage": stage, **more}}


def fsdp(**more: Any) -> dict[str, Any]:  # noqa: ANN401  a JSON's values
    """The JSON of FSDP."""
    return {**BF16, "fsdp": more}


OFFLOADS = {"offload_optimizer": {"device": "cpu"}}
ALONE = Choice("zero1", adds=True, replays=True)
CHOICES: tuple[tuple[dict[str, Any], tuple[str, ...], int, Choice], ...] = (
    (zero(1), (), 1, ALONE),
    (zero(1), (), 2, ALONE),
    (zero(1), ("--no-cuda-graph",), 1, Choice("zero1", adds=True)),
    (zero(1), ("--inter-document-masking",), 1, Choice("zero1", adds=True)),
    (zero(1), LOCAL, 1, Choice("zero1")),
    (zero(1), NO_COPIES, 2, Choice("zero1", adds=True)),
    (zero(1), TENSOR, 2, ALONE),
    (zero(1), PIPELINE, 2, Choice("zero1", adds=True)),
    (zero(1), CONTEXT, 2, Choice("zero1", adds=True)),
    (zero(1, dtype="bf16"), (), 1, Choice("zero1")),
    (zero(1, **OFFLOADS), (), 1, Choice("zero1")),
    (zero(2), (), 1, ALONE),
    (zero(3), (), 1, ALONE),
    (zero(2), (), 2, Choice("zero2")),
    ({**zero(1), "communication_data_type": "bf16"}, (), 1, ALONE._replace(replays=False)),
    ({**zero(1), "prescale_gradients": True}, (), 1, ALONE._replace(replays=False)),
    (zero(3), (), 2, Choice("zero3")),
    (zero(2), PIPELINE, 2, ALONE._replace(replays=False)),  # one rank of each stage has nothing to shard
    (zero(3, **OFFLOADS), (), 1, Choice("zero3")),
    (zero(2, dtype="bf16"), (), 1, Choice("zero2")),
    ({**zero(1), "bf16": {"enabled": False}}, (), 1, Choice("zero1")),
    ({**zero(2), "bf16": {"enabled": False}}, (), 1, Choice("zero2")),
    (fsdp(), (), 1, Choice("fsdp", adds=True, keeps=True)),
    (fsdp(), (), 2, Choice("fsdp", adds=True)),
    (fsdp(), ("--global-batch-size", "8", "--micro-batch-size", "4"), 2, Choice("fsdp")),  # one micro-batch
    (fsdp(sync_each_batch=True), (), 2, Choice("fsdp")),
    (fsdp(cpu_offload=True), (), 2, Choice("fsdp")),
    (fsdp(), PIPELINE, 2, Choice("fsdp", keeps=True)),
    (fsdp(), LOCAL, 1, Choice("fsdp", keeps=True)),
    (fsdp(cpu_offload=True), (), 1, Choice("fsdp")),
    (fsdp(sharding_strategy="shard_grad_op"), (), 2, Choice("fsdp", adds=True, keeps=True)),
    (fsdp(**HYBRID), (), 2, Choice("fsdp", adds=True, keeps=True)),
)
"""(JSON, flags, ranks): what the engine does."""


@pytest.mark.parametrize(("ds", "flags", "world", "expected"), CHOICES)
def test_what_an_engine_does(
    make_run: Callable[..., RunConfig], ds: dict[str, Any], flags: tuple[str, ...], world: int, expected: Choice
) -> None:
    """The stage, where gradients add up, what is replayed and what is kept."""
    run = make_run("--recipe", "tinyllama-1.1b", *flags, ds=ds, world=world)
    found = Choice(
        engines.name(run),
        adds=engines.adds_in_the_product(run),
        replays=engines.replays_a_graph(run),
        keeps=engines.fsdp_keeps_weights(run),
    )
    assert found == expected


def test_norms_of_heads_need_nccl_over_two_gpus(make_run: Callable[..., RunConfig]) -> None:
    """Their weights' gradients are added up over tensor-parallel ranks, and no graph may hold that."""
    run = make_run("--recipe", "qwen3-0.6b", *TENSOR, ds=zero(1), world=2)
    assert not engines.can_be_recorded(run)
    assert engines.can_be_recorded(make_run("--recipe", "qwen3-0.6b", ds=zero(1)))


def test_a_graph_that_is_not_wanted_could_still_be(make_run: Callable[..., RunConfig]) -> None:
    """What `--cuda-graph` is refused for is another question than whether it is on."""
    run = make_run("--recipe", "tinyllama-1.1b", "--no-cuda-graph", ds=zero(1))
    assert engines.can_be_recorded(run)
    assert not engines.replays_a_graph(run)


@pytest.mark.parametrize(
    ("ds", "flags", "wanted"),
    [
        ({**zero(0), "bf16": {"enabled": False}}, (*TENSOR, *LOCAL), True),
        (zero(1), (*TENSOR, *LOCAL), True),
        (zero(1), TENSOR, False),
        (zero(1), LOCAL, False),
        (zero(2), (*TENSOR, *LOCAL), False),
        (zero(3), (*TENSOR, *LOCAL), False),
        (fsdp(), (*TENSOR, *LOCAL), False),
    ],
)
def test_one_hardware_queue_is_for_megatrons_own_overlap(
    make_run: Callable[..., RunConfig], ds: dict[str, Any], flags: tuple[str, ...], wanted: bool
) -> None:
    """Its local layers under tensor parallelism; what shards beside layers, and fused layers, take several."""
    assert engines.wants_one_queue(make_run("--recipe", "tinyllama-1.1b", *flags, ds=ds, world=4)) == wanted
