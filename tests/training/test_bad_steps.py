"""Which losses are refused, and what a state remembers of it."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.engine.protocol import StepResult
from tinyllama_mcore.training import bad_steps

CALM = [2.0 + 0.1 * (i % 5) for i in range(200)]
"""Losses of a run in which nothing happens."""


def made(state: RunState, losses: list[float], deviations: float) -> RunState:
    """The state after iterations over 8 sequences each, left out where they are objected to."""
    for loss in losses:
        objected = bad_steps.objection(state, loss, deviations)
        state = bad_steps.after(state, StepResult(loss=loss, grad_norm=1.0, skip_reason=objected), objected, 8)
    return state


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_refused(loss: float) -> None:
    """From the first iteration on, and whether spikes are looked for or not."""
    assert "is not finite" in str(bad_steps.objection(RunState(), loss, 0))


def test_the_bound_is_deviations_above_the_mean() -> None:
    """Just below passes, just above does not, and the message has the figures; far below is no spike."""
    state = made(RunState(), CALM, 6)
    assert state.recent_losses == tuple(CALM[-bad_steps.WINDOW :])
    mean, deviation = statistics.fmean(state.recent_losses), statistics.stdev(state.recent_losses)
    assert bad_steps.objection(state, mean + 5.99 * deviation, 6) is None
    assert "is 6.0 standard deviations above the mean 2.2" in str(
        bad_steps.objection(state, mean + 6.01 * deviation, 6)
    )
    assert bad_steps.objection(state, 0.0, 6) is None
    assert bad_steps.objection(state, 1e9, 0) is None


def test_too_few_losses_judge_nothing() -> None:
    """The first iterations of a run fall fast: none of them is a spike."""
    early = made(RunState(), CALM[: bad_steps.FEWEST - 1], 6)
    assert bad_steps.objection(early, 100.0, 6) is None
    assert bad_steps.objection(made(early, [2.0], 6), 100.0, 6) is not None


def test_what_is_left_out_does_not_move_the_mean() -> None:
    """And is told with its samples; the streak ends with the first update that is made."""
    calm = made(RunState(), CALM, 6)
    spiked = made(calm, [50.0, 60.0], 6)
    assert spiked.recent_losses == calm.recent_losses
    assert (spiked.iteration, spiked.updates, spiked.skipped_in_a_row) == (202, 200, 2)
    assert [(e.iteration, e.first_sample, e.end_sample) for e in spiked.events] == [
        (201, 1600, 1608),
        (202, 1608, 1616),
    ]
    after = made(spiked, [2.1], 6)
    assert (after.updates, after.skipped_in_a_row, len(after.events)) == (201, 0, 2)


def test_a_return_steps_over_what_was_seen() -> None:
    """Weights and window are the checkpoint's; the next sample and the events are the run's."""
    checkpoint = made(RunState(), CALM[:100], 6)
    state = made(checkpoint, [math.nan] * 3, 6)
    back = bad_steps.rolled_back(state, checkpoint)
    assert replace(back, consumed_samples=800, events=()) == checkpoint
    assert back.consumed_samples == 824
    assert [event.kind for event in back.events] == ["skipped"] * 3 + ["rolled back"]
    assert bad_steps.rollbacks_to(back, checkpoint) == 1
    assert bad_steps.rollbacks_to(back, made(RunState(), CALM[:10], 6)) == 0


def test_rollbacks_are_counted_over_what_was_saved_right_after_them() -> None:
    """A checkpoint that stands past the samples of a rollback is the one of before, whoever saved it in between."""
    checkpoint = start = made(RunState(), CALM[:100], 6)
    for count in range(1, 4):
        checkpoint = bad_steps.rolled_back(made(checkpoint, [math.nan] * 3, 6), checkpoint)  # saved, and resumed
        assert bad_steps.rollbacks_to(made(checkpoint, [math.nan] * 3, 6), checkpoint) == count
    assert bad_steps.rollbacks_to(checkpoint, start) == 1  # had it not been saved
    assert bad_steps.rollbacks_to(checkpoint, made(checkpoint, [2.1], 6)) == 0
