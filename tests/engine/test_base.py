"""What all engines do alike: the learning rate is the one given, evaluation changes nothing, copies are compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.layouts import Mode
from tests.engine import small
from tests.engine.replicas import replica_spread
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training.stopping import Abandoned

MODES = [Mode(sharding=name) for name in ("zero0", "zero1", "zero3", "fsdp")]
LEFT = [
    *(Mode(sharding=name) for name in ("zero0", "zero1", "zero2", "zero3", "zero3-offload", "fsdp", "fsdp-grad-op")),
    Mode(sharding="zero1", precision="bf16"),
]
WITH_COPIES = [Mode(sharding=name) for name in ("zero0", "zero1", "fsdp-hybrid")]
Held = dict[tuple[str, str], torch.Tensor]


def _equal(one: Held, other: Held, *kinds: str) -> bool:
    """Whether two states have the same bits of some kinds."""
    return all(torch.equal(tensor, other[key]) for key, tensor in one.items() if key[0] in kinds)


def _steps_and_evaluates(run: RunConfig) -> None:
    tiny = small.build(run)
    tiny.engine.load_state(tiny.lookup, 5)
    batches, before = tiny.batches(), tiny.state()
    loss = float(tiny.engine.eval_step(batches).mean())
    assert _equal(tiny.state(), before, *small.SCALES)
    refused = tiny.engine.train_step(batches, 1e-3, loss / 2)
    assert refused.skip_reason == f"loss {refused.loss:.4f} is above {loss / 2:.4f}"
    assert math.isnan(refused.grad_norm)
    assert _equal(tiny.state(), before, *small.SCALES)
    still = tiny.engine.train_step(batches, 0.0, math.inf)
    assert still.skip_reason is None and math.isfinite(still.grad_norm)
    assert abs(still.loss - loss) < 1e-6 and abs(refused.loss - loss) < 1e-6
    after = tiny.state()
    assert _equal(after, before, "model")
    assert not any(torch.equal(tensor, before[key]) for key, tensor in after.items() if key[0] == "exp_avg_sq")
    tiny.engine.train_step(batches, 1e-3, math.inf)
    moved = tiny.state()
    assert not any(torch.equal(tensor, before[key]) for key, tensor in moved.items() if key[0] == "model")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_step_updates_by_its_learning_rate_and_its_limit(mode: Mode, tmp_path: Path) -> None:
    """At 0 only the moments move; with the loss above the limit nothing does, nor by an evaluation."""
    small.hold(_steps_and_evaluates, mode, tmp_path)


class _Left(list):
    """Micro-batches of an iteration that is left after some of them."""

    def __init__(self, batches: list, done: int) -> None:
        super().__init__(batches)
        self.done = done

    def __iter__(self) -> Iterator:
        yield from itertools.islice(super().__iter__(), self.done)
        raise Abandoned


def _begins_anew(run: RunConfig) -> None:
    tiny = small.build(run)
    batches = tiny.batches()
    tiny.engine.load_state(tiny.lookup, 5)
    whole = tiny.engine.train_step(batches, 1e-3, math.inf)
    expected = tiny.state()
    for done, loads in itertools.product((0, 1), (False, True)):
        tiny.engine.load_state(tiny.lookup, 5)
        with pytest.raises(Abandoned):
            tiny.engine.train_step(_Left(batches, done), 1e-3, math.inf)
        if loads:
            tiny.engine.load_state(tiny.lookup, 5)
        again = tiny.engine.train_step(batches, 1e-3, math.inf)
        assert (again.loss, again.grad_norm) == (whole.loss, whole.grad_norm), (done, loads)
        assert _equal(tiny.state(), expected, *small.SCALES), (done, loads)


@pytest.mark.parametrize("mode", LEFT, ids=str)
def test_an_iteration_that_was_left_leaves_nothing(mode: Mode, tmp_path: Path) -> None:
    """Neither its gradients nor what libraries counted of it: the next update is bit for bit the one without it."""
    small.hold(_begins_anew, mode, tmp_path)


def _sees_a_copy_that_drifted(run: RunConfig) -> None:
    tiny = small.build(run)
    tiny.engine.load_state(tiny.lookup, 0)
    assert replica_spread(tiny.engine) == 0.0
    if tiny.mesh.rank == 1:
        weight = next(iter(tiny.model.parameters())).data
        (weight.to_local() if hasattr(weight, "to_local") else weight)[0] += 0.25
    assert abs(replica_spread(tiny.engine) - 0.25) < 1e-6


@pytest.mark.parametrize("mode", WITH_COPIES, ids=str)
def test_a_copy_that_drifted_is_seen(mode: Mode, tmp_path: Path) -> None:
    """On every rank, by as much as it drifted."""
    small.hold(_sees_a_copy_that_drifted, mode, tmp_path)
