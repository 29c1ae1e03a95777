"""The loop: iterations from where the run stands to where it ends, and what happens every so many of them.

It knows no layout and no sharding: an engine trains, a saver saves, loggers tell. Neighbours: `pretrain` builds the
parts, `metrics` and `loggers` turn a step into figures.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.data import loader
from tinyllama_mcore.engine.protocol import ShardingEngine, StepResult
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.training.loggers import Logger
from tinyllama_mcore.training.metrics import Meter, StepOutcome, peak_memory_gib, step_record

PREPARED_AHEAD = 64
"""Iterations whose sample indices are made to exist at a time: a long run goes through a small corpus very often."""
MOST_SKIPPED_IN_A_ROW = 10
"""Updates left out one after another before the run ends: its weights or its data are beyond repair by waiting."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says why and where it was last saved."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop drives."""

    run: RunConfig
    mesh: Mesh
    engine: ShardingEngine
    train: loader.Samples
    valid: loader.Samples | None
    """None where the split leaves nothing to evaluate on."""
    prepare: Callable[[int, int], None]
    """Makes the training samples [first, last) readable. Collective."""
    consumed: Callable[[int], dict[str, int]]
    """How many of the first N samples came from each dataset."""
    document_end: int | None
    """Id that ends a document, where documents are kept apart."""
    meter: Meter
    loggers: Sequence[Logger]
    save: Callable[[RunState], None] | None
    """Writes a checkpoint; None where the run keeps none."""


def train(parts: Parts, state: RunState) -> RunState:
    """Go on from `state` until the run is done or asked to leave; the last state is saved.

    Raises:
        RunFailed: too many updates in a row had a gradient that is not finite.
    """
    run, started, saved_at, skipped = parts.run, time.monotonic(), state.iteration, 0
    batches, prepared = _iterations(parts, parts.train, state.consumed_samples), state.consumed_samples
    with _stop_signals() as signalled:
        while state.iteration < run.batch.train_iters:
            if state.consumed_samples == prepared:
                ahead = min(PREPARED_AHEAD, run.batch.train_iters - state.iteration)
                prepared += ahead * run.batch.global_batch_size
                parts.prepare(state.consumed_samples, prepared)
            state, step = _step(parts, state, next(batches))
            skipped = skipped + 1 if step.skipped else 0
            if skipped == MOST_SKIPPED_IN_A_ROW:
                raise RunFailed(
                    f"the gradient norm was not finite in {skipped} iterations in a row, up to {state.iteration}; "
                    f"the last checkpoint is of iteration {saved_at}"
                )
            if _due(run.loop.eval_interval, state.iteration) and parts.valid is not None:
                evaluate(parts, parts.valid, state.iteration)
            minutes = (time.monotonic() - started) / 60
            leave = bool(_most(parts.mesh, bool(signalled) or 0 < run.loop.exit_duration <= minutes))
            leave = leave or _due(run.loop.exit_interval, state.iteration)
            if parts.save and (leave or _due(run.checkpoint.save_interval, state.iteration)):
                parts.save(state)
                saved_at = state.iteration
            if leave:
                break
    if parts.save and saved_at != state.iteration:
        parts.save(state)
    return state


def _step(parts: Parts, state: RunState, micro_batches: list[loader.TokenBatch]) -> tuple[RunState, StepResult]:
    """One iteration and its record."""
    run = parts.run
    lr = learning_rate(state.iteration, run.optimizer, run.batch.train_iters)
    begin = time.perf_counter()
    result = parts.engine.train_step(micro_batches, lr)
    seconds = time.perf_counter() - begin
    memory = _most(parts.mesh, peak_memory_gib())
    consumed = state.consumed_samples + run.batch.global_batch_size
    state = replace(
        state,
        iteration=state.iteration + 1,
        updates=state.updates + (not result.skipped),
        consumed_samples=consumed,
        consumed_by_dataset=parts.consumed(consumed),
    )
    if parts.loggers:
        outcome = StepOutcome(
            iteration=state.iteration,
            consumed_samples=consumed,
            lm_loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            iteration_time_s=seconds,
            peak_memory_gib=memory,
            skipped=result.skipped,
        )
        record = step_record(parts.meter, outcome)
        for logger in parts.loggers:
            logger.step(record)
    return state, result


def evaluate(parts: Parts, valid: loader.Samples, iteration: int) -> float:
    """Mean loss over the first `eval_iters` global batches of `valid`, in nats; the same ones each time."""
    batches = itertools.islice(_iterations(parts, valid, 0), parts.run.loop.eval_iters)
    losses = [parts.engine.eval_step(micro_batches) for micro_batches in batches]
    loss = sum(losses) / len(losses)
    for logger in parts.loggers:
        logger.evaluation(iteration, loss)
    return loss


def _iterations(parts: Parts, samples: loader.Samples, consumed_samples: int) -> Iterator[list[loader.TokenBatch]]:
    return loader.iterations(
        samples,
        consumed_samples=consumed_samples,
        batch=parts.run.batch,
        num_micro_batches=parts.run.num_micro_batches,
        dp_rank=parts.mesh.data.rank,
        dp_size=parts.mesh.data.size,
        document_end=parts.document_end,
    )


def _due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0


def _most(mesh: Mesh, value: float) -> float:
    """The largest value of any rank: so one that wants to leave takes all with it, at the same iteration."""
    most = torch.tensor(float(value), device=mesh.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return float(most)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGUSR1 (preemption) fill while the body runs, instead of ending the process."""
    received: list[int] = []
    previous = {
        s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
