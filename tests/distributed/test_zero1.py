"""ZeRO-1's step of our own, which a GPU uses, on the ranks of a CPU: it learns what DeepSpeed's own step does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import Job, flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import SHOWN

MODES = [
    Mode(sharding="zero1", dp=2, precision="bf16"),
    Mode(sharding="zero1", tp=2, dp=1, precision="bf16"),
    Mode(sharding="zero1", tp=2, sp=True, dp=1, precision="bf16"),
    Mode(sharding="zero1", pp=2, dp=1, precision="bf16"),
]


ENDS = ("--exit-interval", str(SHOWN))


def _train(argv: list[str]) -> int:
    """The trainer with the step that it has on a GPU."""
    from tinyllama_mcore.engine import zero1
    from tinyllama_mcore.pretrain import main

    zero1._on_gpus = lambda _: True
    return main(argv)


def _run(mode: Mode, home: Path, corpus: list[str], *more: str) -> tuple[list[dict], str]:
    """Metrics, and what the first rank said."""
    argv = [*flags(mode, home, corpus), "--no-cuda-graph", "--metrics-file", str(home / "metrics.jsonl"), *more]
    logs = home / f"logs{len(list(home.glob('logs*')))}"
    codes = ranks.run(mode.world_size, _train, argv, logs=logs, timeout=250)
    said = (logs / "rank0.log").read_text()
    assert codes == [0] * mode.world_size, said[-3000:]
    assert "(DeviceStep)" in said
    return ranks.metrics(home / "metrics.jsonl"), said


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_curve_is_that_of_deepspeeds_step(
    mode: Mode, shown_of: Callable[[Mode], tuple[Job, int]], corpus: list[str], tmp_path: Path
) -> None:
    """Losses and norms in the noise of bf16, the first ones nearer: what a tie is rounded to is all that differs there.

    Gradients are reduced to the ranks that update them, clipped, and AdamW goes over halves of the masters.
    """
    found, right = _run(mode, tmp_path, corpus, *ENDS)[0], shown_of(mode)[0].metrics[:SHOWN]
    assert found[0]["lm_loss"] == pytest.approx(right[0]["lm_loss"], abs=5e-4)
    assert found[0]["grad_norm"] == pytest.approx(right[0]["grad_norm"], rel=1e-3)
    for own, other in zip(found, right, strict=True):
        assert own["lm_loss"] == pytest.approx(other["lm_loss"], abs=3e-3)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


def test_halves_of_the_masters_are_saved_and_read_whole(corpus: list[str], tmp_path: Path) -> None:
    """A run that saves on its way and goes on is the run that did neither, to the bit."""
    mode, saved = MODES[0], tmp_path / "stopped" / "checkpoints"
    whole, _ = _run(mode, tmp_path / "whole", corpus, *ENDS)
    keep = ("--save", str(saved), "--save-interval", "4")
    _run(mode, tmp_path / "stopped", corpus, *keep, "--exit-interval", "6")
    stopped, said = _run(mode, tmp_path / "stopped", corpus, *keep, *ENDS)
    assert "resuming     from" in said
    assert [(r["lm_loss"], r["grad_norm"]) for r in stopped] == [(r["lm_loss"], r["grad_norm"]) for r in whole]
