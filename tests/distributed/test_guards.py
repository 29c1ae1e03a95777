"""The guards that stay on for every engine, each seen to fail when its fault is planted.

A wrong wiring of DeepSpeed and Megatron trains on with a wrong gradient; one of three figures gives it away: the first
step's loss and gradient norm against one process, or the spread between copies of a parameter.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.conftest import Job, flags
from tests.distributed.layouts import Mode


def _sum_of_norm_gradients_is_lost() -> None:
    """Sequence parallelism without the all-reduce of norm weights' gradients."""
    from tinyllama_mcore.model.fused import TensorParallel

    TensorParallel.sum_of_tokens = lambda self, gradient: gradient


def _replicated_parameters_count_twice() -> None:
    """Every parameter marked as cut: norms are counted on each tensor-parallel rank."""
    from tinyllama_mcore.model import gpt

    def mark(model: torch.nn.Module, run: object) -> None:
        for parameter in model.parameters():
            parameter.tensor_model_parallel = True

    gpt._mark_tensor_parallel = mark


def _gradient_is_divided_twice() -> None:
    """DeepSpeed told of the accumulation that Megatron's schedule already divides by."""
    from tinyllama_mcore.engine import deepspeed_engine

    right = deepspeed_engine.deepspeed_config

    def wrong(run: object) -> dict:
        config = right(run)
        config["train_batch_size"] *= run.num_micro_batches
        return config | {"gradient_accumulation_steps": run.num_micro_batches}

    deepspeed_engine.deepspeed_config = wrong


def _padding_takes_probability() -> None:
    """Rows that pad the vocabulary take part in the softmax."""
    from tinyllama_mcore.model import fused_model

    right = fused_model.Columns
    fused_model.Columns = lambda first, held, real: right(first=first, held=held, real=held)


def _ranks_draw_the_same_samples() -> None:
    """Bug 4 of the released run: every data-parallel rank reads the first one's samples."""
    from tinyllama_mcore.sampling.loader import BatchSource

    right = BatchSource._micro_batch

    def first(source: BatchSource, start: int) -> object:
        source._data = dataclasses.replace(source._data, rank=0)
        return right(source, start)

    BatchSource._micro_batch = first


def _a_rank_loses_an_update() -> None:
    """One rank's copy of the weights drifts."""
    from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine

    right = DeepSpeedEngine.train_step

    def step(engine: DeepSpeedEngine, *arguments: object, **named: object) -> object:
        result = right(engine, *arguments, **named)
        if torch.distributed.get_rank() == 1:
            next(engine._model.parameters()).data[0] += 1e-3
        return result

    DeepSpeedEngine.train_step = step


def _interleaved_sends_are_batched() -> None:
    """Two pipeline ranks that batch what they send each other: Megatron takes one tensor for the other."""
    from tinyllama_mcore.model import gpt

    right = gpt._pipeline
    gpt._pipeline = lambda run: {**right(run), "overlap_p2p_comm": False, "batch_p2p_comm": True}


def _chunks_of_a_sequence_stay_mixed_up() -> None:
    """Keys and values gathered over context ranks and left in the order of the ranks."""
    from tinyllama_mcore.model import context

    context.in_order = lambda gathered, size, dim: gathered


def _norm_is_of_one_shard() -> None:
    """FSDP's clipping forgets the other shards."""
    from tinyllama_mcore.engine import fsdp_engine

    right = fsdp_engine.clip_by_global_norm
    fsdp_engine.clip_by_global_norm = lambda *arguments, shards: right(*arguments)


def _observed(argv: list[str], fault: Callable[[], None] | None, out: Path) -> int:
    """The trainer with a fault planted; it leaves the spread of its replicas in `out`."""
    if fault:
        fault()
    from tests.engine.replicas import replica_spread
    from tinyllama_mcore.pretrain import main
    from tinyllama_mcore.training import loop

    train = loop.Loop.train

    def watched(self: loop.Loop) -> object:
        state = train(self)
        spread = replica_spread(self.engine)
        if self.mesh.is_first:
            out.write_text(json.dumps(spread))
        return state

    loop.Loop.train = watched
    return main(argv)


def observe(
    mode: Mode, corpus: list[str], home: Path, fault: Callable[[], None] | None, *more: str
) -> tuple[list[dict], float]:
    """Three iterations of a mode: their records, and the spread of the replicas afterwards."""
    argv = [*flags(mode, home, corpus), "--exit-interval", "3", "--metrics-file", str(home / "metrics.jsonl"), *more]
    codes = ranks.run(mode.world_size, _observed, argv, fault, home / "spread.json", logs=home / "logs")
    assert codes == [0] * mode.world_size, (home / "logs" / "rank0.log").read_text()[-3000:]
    job = Job(home=home, argv=tuple(argv))
    return job.metrics, json.loads((home / "spread.json").read_text())


WATCHED = [
    Mode(sharding="zero0", tp=2, dp=1, sp=True),
    Mode(sharding="zero1"),
    Mode(sharding="zero2"),
    Mode(sharding="zero3"),
    Mode(sharding="zero1", tp=2, dp=1, sp=True),
    Mode(sharding="fsdp", tp=2, sp=True),
    Mode(sharding="zero2", pp=2, vpp=2),
    Mode(sharding="zero1", cp=2, tp=2, sp=True, dp=1),
]


COMPILED = [
    *(Mode(sharding=sharding) for sharding in ("zero2", "zero3", "fsdp")),
    Mode(sharding="zero2", tp=2),
    Mode(sharding="zero2", pp=2, vpp=2),
    Mode(sharding="fsdp", pp=2),
]


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        *((mode, ()) for mode in WATCHED),
        *(pytest.param(mode, ("--compile",), marks=[pytest.mark.slow, pytest.mark.layouts]) for mode in COMPILED),
    ],
    ids=str,
)
def test_all_guards_hold(mode: Mode, more: tuple[str, ...], reference: list, corpus: list[str], tmp_path: Path) -> None:
    """First-step loss and norm are those of one process, and copies of a parameter are equal to the bit."""
    records, spread = observe(mode, corpus, tmp_path, None, *more)
    loss, norm = reference[0]
    assert abs(records[0]["lm_loss"] - loss) <= 2e-6
    assert abs(records[0]["grad_norm"] - norm) <= 1e-5 * norm
    assert spread == 0


@pytest.mark.parametrize(
    ("fault", "mode", "guard"),
    [
        (_sum_of_norm_gradients_is_lost, Mode(sharding="zero1", tp=2, dp=1, sp=True), "spread"),
        (_replicated_parameters_count_twice, Mode(sharding="zero1", tp=2, dp=1), "norm"),
        (_gradient_is_divided_twice, Mode(sharding="zero2"), "norm"),
        (_gradient_is_divided_twice, Mode(sharding="zero3"), "norm"),
        (_padding_takes_probability, Mode(sharding="zero1", tp=2, dp=1), "loss"),
        (_ranks_draw_the_same_samples, Mode(sharding="zero1"), "loss"),
        (_a_rank_loses_an_update, Mode(sharding="zero0"), "spread"),
        (_interleaved_sends_are_batched, Mode(sharding="zero1", pp=2, vpp=2, dp=1), "norm"),
        (_chunks_of_a_sequence_stay_mixed_up, Mode(sharding="zero1", cp=2, dp=1), "loss"),
        (_norm_is_of_one_shard, Mode(sharding="fsdp"), "norm"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else str(value),
)
def test_a_planted_fault_is_seen(
    fault: Callable[[], None], mode: Mode, guard: str, reference: list, corpus: list[str], tmp_path: Path
) -> None:
    """The guard that is named goes past its bound by a wide margin."""
    records, spread = observe(mode, corpus, tmp_path, fault)
    loss, norm = reference[0]
    found = {
        "loss": abs(records[0]["lm_loss"] - loss) > 10 * 2e-6,
        "norm": abs(records[0]["grad_norm"] - norm) > 10 * 1e-5 * norm,
        "spread": spread > 0,
    }
    assert found[guard], (records[0], reference[0], spread)


def _nan_on_one_rank() -> None:
    """The gradient of the second iteration is not a number, on the last rank only."""
    from tinyllama_mcore.engine import schedule

    right, calls = schedule.train, []

    def run(model: torch.nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        bad = len(calls) == 2 and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        hook = model.chunks[-1].register_forward_hook(
            lambda module, inputs, loss: loss.register_hook(lambda gradient: gradient * float("nan")) and None
        )
        if not bad:
            hook.remove()
        try:
            return right(model, *args, **kwargs)
        finally:
            hook.remove()

    schedule.train = run


@pytest.mark.parametrize(
    "mode",
    [
        *(Mode(sharding=s) for s in ("zero0", "zero1", "zero2", "zero3", "fsdp")),
        Mode(sharding="zero1", precision="bf16"),
    ],
    ids=str,
)
def test_a_bad_gradient_is_skipped_by_all(mode: Mode, corpus: list[str], tmp_path: Path) -> None:
    """One NaN on one rank: that update is left out everywhere, is counted, and the next one is finite."""
    records, spread = observe(mode, corpus, tmp_path, _nan_on_one_rank)
    assert [r["skipped"] for r in records] == [False, True, False]
    assert records[2]["lm_loss"] == records[2]["lm_loss"] < 7
    assert spread == 0
