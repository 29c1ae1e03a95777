"""The loop over a small real engine in one process: what happens when, and in which order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training.metrics import Validation


class Diary:
    """A logger that writes down what it is told, and asks to leave after an iteration."""

    def __init__(self, leave_after: int | None = None) -> None:
        self.told: list[list[Any]] = []
        self._leave_after = leave_after

    def step(self, record: Any) -> None:  # noqa: ANN401
        """An iteration."""
        self.told.append(["step", record.iteration, record.consumed_samples, record.lr])
        if record.iteration == self._leave_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluation(self, iteration: int, found: Validation) -> None:
        """An evaluation; the same samples each time, so another model gives another loss."""
        self.told.append(["evaluation", iteration, found.loss])

    def saved(self, iteration: int, seconds: float, *, in_background: bool) -> None:
        """A save."""
        self.told.append(["saved", iteration])

    def close(self) -> None:
        """The end."""
        self.told.append(["closed"])


def _kept_diary(run: RunConfig, out: Path, leave_after: int | None) -> int:
    """Train, and leave what a logger was told in `out`."""
    from tinyllama_mcore.run import train
    from tinyllama_mcore.training import loggers

    diary = Diary(leave_after)
    loggers.loggers_for = lambda *_, **__: (diary,)
    state = train(run)
    out.write_text(json.dumps({"told": diary.told, "iteration": state.iteration, "updates": state.updates}))
    return 0


@pytest.fixture
def trained(tmp_path: Path, corpus: list[str]) -> Callable[..., dict[str, Any]]:
    """Train the small recipe in a process of its own, with some blocks changed; what its diary says."""

    def train(leave_after: int | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        recipe = write_json(tmp_path / "recipe.json", RECIPE)
        config = write_json(tmp_path / "ds.json", {"zero_optimization": {"stage": 0}})
        data = {"blend": ((1.0, corpus[1]),), "split": (80, 20, 0)}
        run = compose(recipe, config, **{"data": data, "batch": {"train_iters": 6}, **changes})
        codes = ranks.run(1, _kept_diary, run, tmp_path / "diary.json", leave_after, logs=tmp_path / "logs")
        assert codes == [0], (tmp_path / "logs" / "rank0.log").read_text()[-3000:]
        return json.loads((tmp_path / "diary.json").read_text())

    return train


def kinds(told: list[list[Any]]) -> list[tuple[str, int]]:
    """(what, iteration) of each entry but the last, which is the end."""
    assert told[-1] == ["closed"]
    return [(entry[0], entry[1]) for entry in told[:-1]]


def test_what_is_due_when(trained: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """After an iteration: its record, the evaluation, the save. The last iteration is saved once."""
    loop = {"eval_interval": 2, "eval_iters": 1}
    found = trained(checkpoint={"save": str(tmp_path / "kept"), "save_interval": 3}, loop=loop)
    assert kinds(found["told"]) == [
        ("step", 1),
        *(("step", 2), ("evaluation", 2)),
        *(("step", 3), ("saved", 3)),
        *(("step", 4), ("evaluation", 4)),
        ("step", 5),
        *(("step", 6), ("evaluation", 6), ("saved", 6)),
    ]
    assert (found["iteration"], found["updates"]) == (6, 6)
    losses = [entry[2] for entry in found["told"] if entry[0] == "evaluation"]
    assert len(set(losses)) == 3


def test_samples_and_rates_follow_the_iteration(trained: Callable[..., dict[str, Any]]) -> None:
    """Eight samples an iteration; the rate of iteration i is the schedule's after i - 1 updates."""
    from tinyllama_mcore.config.schema import OptimizerConfig
    from tinyllama_mcore.optim.schedule import learning_rate

    steps = [entry[1:] for entry in trained()["told"] if entry[0] == "step"]
    optimizer = OptimizerConfig(**RECIPE["optimizer"])
    assert steps == [[i, 8 * i, learning_rate(i - 1, optimizer, 6)] for i in range(1, 7)]


def test_a_run_that_is_asked_to_leave_saves_first(trained: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """SIGTERM after iteration 2: nothing more is trained, and the run that follows goes on from there."""
    kept = {"save": str(tmp_path / "kept")}
    assert kinds(trained(leave_after=2, checkpoint=kept)["told"]) == [("step", 1), ("step", 2), ("saved", 2)]
    again = trained(checkpoint={**kept, "load": kept["save"]})
    assert kinds(again["told"]) == [*(("step", i) for i in range(3, 7)), ("saved", 6)]


@pytest.mark.parametrize("saves", [True, False])
def test_exit_interval(saves: bool, trained: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Leave at an iteration that it divides, after a checkpoint where the run keeps any."""
    changes = {"checkpoint": {"save": str(tmp_path / "kept")}} if saves else {}
    found = trained(loop={"exit_interval": 4}, **changes)
    assert kinds(found["told"]) == [*(("step", i) for i in range(1, 5)), *[("saved", 4)] * saves]
