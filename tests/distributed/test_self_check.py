"""Every engine reads back what it was given, at each start: two weights in each other's place end the run untrained.

Planted where libraries go wrong: in the place that a weight is written to, in what the forward pass uses, on one rank
alone, and in the table of places that DeepSpeed itself has wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.conftest import Job, flags, kept, write_json
from tests.distributed.layouts import Mode
from tinyllama_mcore.engine import self_check

TWINS = tuple(f"decoder.layers.{layer}.mlp.linear_fc1.weight" for layer in (1, 2))
"""Two weights of one shape."""
OTHER = dict([TWINS, TWINS[::-1]])


def _exchange(kinds: tuple[str, ...]) -> None:
    """The engine is handed each of the twins in place of the other."""
    load = self_check.Given.__call__

    def wrong(given: self_check.Given, kind: str, name: str) -> torch.Tensor | None:
        value = load(given, kind, name)  # what should be there
        return given._lookup(kind, OTHER[name]) if kind in kinds and name in OTHER else value

    self_check.Given.__call__ = wrong  # type: ignore[method-assign]


def weights_are_exchanged() -> None:
    """On every rank."""
    _exchange(("model",))


def weights_are_exchanged_on_one_rank() -> None:
    """The others hear of it from that one."""
    if os.environ["RANK"] == "1":
        _exchange(("model",))


def moments_are_exchanged() -> None:
    """The second moment alone: only a checkpoint has it."""
    _exchange(("exp_avg_sq",))


def the_forward_pass_is_exchanged() -> None:
    """Weights and moments stand in their places; what the forward pass uses was made from the other's."""
    from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine

    load = self_check._differences

    def wrong(engine: DeepSpeedEngine, given: self_check.Given) -> list[str]:
        one, other = (weight for name, weight in engine._model.named_tensors() if name in TWINS)
        if engine._run.sharding.zero_stage == 3:
            one, other = one.ds_tensor, other.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed hangs them on
        kept = one.data.clone()
        one.data.copy_(other.data)
        other.data.copy_(kept)
        return load(engine, given)

    self_check._differences = wrong  # type: ignore[assignment]


def places_are_deepspeeds_own() -> None:
    """`round_robin_gradients` with the links that DeepSpeed made: read and written by one wrong table."""
    from tinyllama_mcore.engine import zero_state

    zero_state._link_by_place = lambda optimizer: None


def _with_fault(argv: list[str], fault: Callable[[], None]) -> int:
    """The trainer with a fault planted."""
    fault()
    from tinyllama_mcore.pretrain import main

    return main(argv)


def refusal(argv: list[str], fault: Callable[[], None], home: Path) -> str:
    """The one message of two ranks that have to leave untrained."""
    codes = ranks.run(2, _with_fault, argv, fault, logs=home / "logs")
    told = (home / "logs" / "rank0.log").read_text()
    assert codes == [1, 1], told[-3000:]
    assert "Traceback" not in told
    assert "iteration " not in told.partition("error: ")[0]
    (message,) = [line for line in told.splitlines() if line.startswith("error: ")]
    return message


CASES = [
    *((weights_are_exchanged, Mode(sharding=name)) for name in ("zero0", "zero1", "zero2", "zero3", "fsdp")),
    *((weights_are_exchanged, Mode(sharding=name, precision="bf16")) for name in ("zero1", "zero3", "fsdp")),
    (weights_are_exchanged, Mode(sharding="zero3-offload")),
    (weights_are_exchanged, Mode(sharding="zero1", pp=2, dp=1)),
    (weights_are_exchanged_on_one_rank, Mode(sharding="zero0")),  # it shards nothing: the others hold what they should
    *((the_forward_pass_is_exchanged, Mode(sharding=name)) for name in ("zero1", "zero2", "zero3")),
    *((the_forward_pass_is_exchanged, Mode(sharding=name, precision="bf16")) for name in ("zero1", "zero2")),
]


@pytest.mark.parametrize(("fault", "mode"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_planted_permutation_ends_the_start(
    fault: Callable[[], None], mode: Mode, corpus: list[str], tmp_path: Path
) -> None:
    """Both weights, the rank, the engine with its version and the JSON are named; nothing is trained."""
    message = refusal([*flags(mode, tmp_path, corpus)], fault, tmp_path)
    for part in (*TWINS, "rank 1: ", str(tmp_path / "ds.json"), "stops before it trains"):
        assert part in message
    assert ("torch " if mode.sharding == "fsdp" else "DeepSpeed ") in message
    assert ("rank 0: " in message) == (fault is not weights_are_exchanged_on_one_rank)


@pytest.mark.parametrize("name", ["zero1", "zero2"])
def test_round_robin_gradients(name: str, reference: list, corpus: list[str], tmp_path: Path) -> None:
    """With DeepSpeed's own links the start is refused; with ours the run is that of one process, saved and read too."""
    argv = flags(Mode(sharding=name), tmp_path, corpus)
    config = json.loads((tmp_path / "ds.json").read_text())
    config["zero_optimization"]["round_robin_gradients"] = True
    write_json(tmp_path / "ds.json", config)
    assert "as the forward pass uses it" in refusal([*argv], places_are_deepspeeds_own, tmp_path)
    for leave_at in ("3", "6"):
        ranks.pretrain([*argv, *kept(tmp_path), "--exit-interval", leave_at], world_size=2, logs=tmp_path / leave_at)
    records = ranks.metrics(tmp_path / "metrics.jsonl")
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5, 6]
    for record, (loss, norm) in zip(records, reference, strict=False):
        assert abs(record["lm_loss"] - loss) <= 2e-6
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm


@pytest.mark.parametrize("name", ["zero1", "zero3", "fsdp"])
def test_exchanged_moments_of_a_checkpoint_are_seen(
    name: str, job_of: Callable[[Mode], Job], corpus: list[str], tmp_path: Path
) -> None:
    """Moments are read back too, where they are loaded."""
    saved = job_of(Mode(sharding="zero1"))
    argv = [*flags(Mode(sharding=name), tmp_path, corpus), "--load", str(saved.save), "--train-iters", "15"]
    argv.append("--override-schedule")
    assert "exp_avg_sq as it is read back" in refusal(argv, moments_are_exchanged, tmp_path)


def test_a_sound_start_says_what_the_check_cost(corpus: list[str], tmp_path: Path) -> None:
    """Its seconds stand in the start-up print."""
    argv = [*flags(Mode(sharding="zero2"), tmp_path, corpus), "--exit-interval", "1"]
    told = ranks.pretrain(argv, world_size=2, logs=tmp_path / "logs")
    assert "weights      verified after loading in 0." in told
