"""Which updates are skipped, and what a rollback does: pure functions of a run's state and one iteration's loss.

Every rank decides alike, because the loss is the global batch's mean. An update whose loss or gradient is not finite
is always skipped; one whose loss is far above the mean of the last ones is where `--loss-spike-deviations` is given
(the rule of OLMo-core's SkipStepAdamW: 128 losses, 6 deviations). Losses of skipped updates do not enter the mean.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np

from tinyllama_mcore.checkpoint.manifest import Event, RunState
from tinyllama_mcore.engine.protocol import StepResult

WINDOW = 128
"""Losses that a spike is measured against."""
FEWEST = 32
"""Losses below which no mean is known well enough to call anything a spike."""


def largest_loss(state: RunState, deviations: float) -> float:
    """The largest mean loss with which the next update may be made, in nats; infinity where every finite one passes.

    Args:
        state: of the run before this iteration.
        deviations: standard deviations above the mean of the last losses that are too many; 0: none are.
    """
    if deviations == 0 or len(state.recent_losses) < FEWEST:
        return math.inf
    limit = statistics.fmean(state.recent_losses) + deviations * statistics.stdev(state.recent_losses)
    return float(np.float32(limit))  # what a GPU compares its fp32 loss with


def objection(state: RunState, loss: float, deviations: float) -> str | None:
    """Why an update with this `loss` must not be made, in words; None where it may.

    Args:
        state: of the run before this iteration.
        loss: mean of the global batch, in nats.
        deviations: standard deviations above the mean that are too many; 0 lets every finite loss pass.
    """
    if not math.isfinite(loss):
        return f"loss {loss} is not finite"
    if loss <= largest_loss(state, deviations):
        return None
    mean, deviation = statistics.fmean(state.recent_losses), statistics.stdev(state.recent_losses)
    return (
        f"loss {loss:.4f} is {(loss - mean) / deviation if deviation else math.inf:.1f} standard deviations above "
        f"the mean {mean:.4f} of the last {len(state.recent_losses)}"
    )


def after(state: RunState, result: StepResult, objected: str | None, samples: int) -> RunState:
    """The state after one iteration over `samples` sequences, but for what was consumed of each dataset.

    `objected`: why the loss did not pass, with the losses before it; else the engine's own words are kept.
    """
    end = state.consumed_samples + samples
    state = replace(state, iteration=state.iteration + 1, consumed_samples=end)
    if result.skip_reason is None:
        recent = (*state.recent_losses, result.loss)[-WINDOW:]
        return replace(state, updates=state.updates + 1, recent_losses=recent, skipped_in_a_row=0)
    event = Event(
        iteration=state.iteration,
        kind="skipped",
        reason=objected or result.skip_reason,
        first_sample=end - samples,
        end_sample=end,
    )
    return replace(state, skipped_in_a_row=state.skipped_in_a_row + 1, events=(*state.events, event))


def rolled_back(state: RunState, checkpoint: RunState) -> RunState:
    """`checkpoint`'s state, loaded after `state`: the samples since are skipped, the events are kept."""
    event = Event(
        iteration=state.iteration,
        kind="rolled back",
        reason=f"{state.skipped_in_a_row} updates in a row skipped; rolled back to iteration {checkpoint.iteration}",
        first_sample=checkpoint.consumed_samples,
        end_sample=state.consumed_samples,
    )
    return replace(
        checkpoint,
        consumed_samples=state.consumed_samples,
        consumed_by_dataset=state.consumed_by_dataset,
        events=(*state.events, event),
    )


def rollbacks_to(state: RunState, checkpoint: RunState) -> int:
    """Rollbacks to `checkpoint` so far: the samples skipped then begin where it stood.

    A run that leaves right after a rollback saves that checkpoint again, past the samples that it skipped: those before
    them count too.
    """
    count, stood = 0, {checkpoint.consumed_samples}
    for event in reversed(state.events):
        if event.kind == "rolled back" and stood & {event.first_sample, event.end_sample}:
            count += 1
            stood.add(event.first_sample)
    return count
