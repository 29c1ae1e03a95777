"""The loop: iterations from where the run stands to where it ends, and what happens every so many of them.

It knows no layout and no sharding: an engine trains, a saver saves, loggers tell. Neighbours: `pretrain` builds the
parts, `stopping` says when to leave, `bad_steps` which updates count, `metrics` and `loggers` turn a step into figures.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.checkpoint.writer import SaveFailed
from tinyllama_mcore.config.schema import ConfigError, RunConfig, RunFailed
from tinyllama_mcore.data import loader
from tinyllama_mcore.engine.protocol import ShardingEngine
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.training import bad_steps, stopping
from tinyllama_mcore.training.loggers import Logger
from tinyllama_mcore.training.metrics import Meter, StepOutcome, peak_memory_gib, step_record

PREPARED_AHEAD = 64
"""Iterations whose sample indices are made to exist at a time: a long run goes through a small corpus very often."""
MOST_RETURNS = 3
"""Times that a run goes back to one checkpoint before it ends: its weights are beyond repair by other samples."""


class Saver(Protocol):
    """Writes checkpoints, at once or in the background."""

    @property
    def failure(self) -> str | None:
        """What a save in the background failed on."""

    def __call__(self, state: RunState) -> None:
        """Make a checkpoint of `state`, or begin to. Collective. Raises SaveFailed on every rank."""

    def hurry(self) -> None:
        """The run is asked to leave: what was begun is not to keep the last save waiting."""

    def finish(self) -> None:
        """Wait for what was begun. Collective. Raises SaveFailed on every rank."""

    def take_up(self, latest: int) -> RunState:
        """Load the newest whole checkpoint of an iteration up to `latest`. Collective.

        Raises ConfigError on every rank alike, where there is none.
        """


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
    save: Saver | None
    """None where the run keeps no checkpoints."""


def train(parts: Parts, state: RunState) -> RunState:
    """Go on from `state` until the run is done or asked to leave; the last state is saved.

    Raises:
        RunFailed: no checkpoint could be written, or too many updates in a row had to be left out.
    """
    with stopping.stop_signals(speaks=parts.mesh.is_first) as signalled:
        loop = _Loop(parts, state, signalled)
        try:
            return loop.run()
        except SaveFailed as error:
            raise RunFailed(f"{error}. Checkpoints before it are as they were") from error
        finally:
            loop.watchdog.rest()


class _Loop:
    """Where a run stands."""

    def __init__(self, parts: Parts, state: RunState, signalled: list[int]) -> None:
        self.parts, self.state, self.signalled = parts, state, signalled
        self.started = time.monotonic()
        self.saved_at = state.iteration
        self.launcher_has_ended = launch.launcher_watch()
        self.watchdog = stopping.Watchdog(parts.run.loop.distributed_timeout_minutes * 60, parts.mesh.rank)
        self._begin_at_state()

    def _begin_at_state(self) -> None:
        """Batches from the state's next sample on; nothing of them is prepared yet."""
        self.batches = _iterations(self.parts, self.parts.train, self.state.consumed_samples)
        self.prepared = self.state.consumed_samples

    def run(self) -> RunState:
        """Iterations until the end, or until a rank is asked to leave."""
        run, leave = self.parts.run, False
        while self.state.iteration < run.batch.train_iters and not leave:
            try:
                self._step()
                if self.state.skipped_in_a_row == run.loop.max_skipped_in_a_row:
                    self._go_back()
                if _due(run.loop.eval_interval, self.state.iteration) and self.parts.valid is not None:
                    evaluate(self.parts, self.parts.valid, self.state.iteration, self._before_micro_batch)
                leave = self._asked_to_leave() or _due(run.loop.exit_interval, self.state.iteration)
            except stopping.Abandoned:
                leave = True
            if leave and self.parts.save is not None and self.saved_at != self.state.iteration:
                self.parts.save.hurry()
            if leave or _due(run.checkpoint.save_interval, self.state.iteration):
                self._save()
        self._save()
        if self.parts.save is not None:
            self.parts.save.finish()
        return self.state

    def _asked_to_leave(self) -> bool:
        """Whether any rank was. Collective. SaveFailed where any rank could not write what it began to."""
        run, save = self.parts.run.loop, self.parts.save
        minutes = (time.monotonic() - self.started) / 60
        leaves = bool(self.signalled) or self.launcher_has_ended() or 0 < run.exit_duration <= minutes
        word = stopping.LEAVE if leaves else stopping.GOING_ON
        word = stopping.FAILED if save is not None and save.failure is not None else word
        word = int(stopping.agreed(word))
        if word == stopping.FAILED and save is not None:
            save.finish()
        return word == stopping.LEAVE

    def _before_micro_batch(self) -> None:
        """Progress was made; leave here if any rank was asked to.

        Under a pipeline ranks stand at different micro-batches and pass activations on: they leave after the iteration.
        """
        self.watchdog.beat(f"iteration {self.state.iteration + 1}")
        if self.parts.mesh.pipeline.size == 1 and self._asked_to_leave():
            raise stopping.Abandoned

    def _step(self) -> None:
        """One iteration and its record."""
        parts, run, state = self.parts, self.parts.run, self.state
        if state.consumed_samples == self.prepared:
            ahead = min(PREPARED_AHEAD, run.batch.train_iters - state.iteration)
            self.prepared += ahead * run.batch.global_batch_size
            parts.prepare(state.consumed_samples, self.prepared)
        lr = learning_rate(state.iteration, run.optimizer, run.batch.train_iters)
        begin = time.perf_counter()
        micro_batches = stopping.Watched(next(self.batches), self._before_micro_batch)
        limit = bad_steps.largest_loss(state, run.loop.loss_spike_deviations)
        result = parts.engine.train_step(micro_batches, lr, limit)
        seconds = time.perf_counter() - begin
        memory = stopping.agreed(peak_memory_gib())
        objected = bad_steps.objection(state, result.loss, run.loop.loss_spike_deviations)
        state = bad_steps.after(state, result, objected, run.batch.global_batch_size)
        self.state = state = replace(state, consumed_by_dataset=parts.consumed(state.consumed_samples))
        if parts.loggers:
            outcome = StepOutcome(
                iteration=state.iteration,
                consumed_samples=state.consumed_samples,
                consumed_by_dataset=state.consumed_by_dataset,
                lm_loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                iteration_time_s=seconds,
                peak_memory_gib=memory,
                skipped=result.skipped,
                skip_reason=state.events[-1].reason if result.skipped else None,
                rollbacks=sum(event.kind == "rolled back" for event in state.events),
            )
            record = step_record(parts.meter, outcome)
            for logger in parts.loggers:
                logger.step(record)

    def _save(self) -> None:
        """Save, where the run keeps checkpoints and this state is not saved yet."""
        parts, iteration = self.parts, self.state.iteration
        if parts.save is not None and self.saved_at != iteration:
            self.watchdog.rest()  # a slow disk is not a stuck rank
            begin = time.perf_counter()
            parts.save(self.state)
            seconds = time.perf_counter() - begin
            self.saved_at = iteration
            for logger in parts.loggers:
                logger.saved(iteration, seconds, in_background=parts.run.checkpoint.async_save)

    def _go_back(self) -> None:
        """Take up the last checkpoint before the updates that were left out, past the samples since.

        Raises:
            RunFailed: there is none, or the run went back to it too often.
        """
        state, parts = self.state, self.parts
        self.watchdog.rest()
        why = f"{state.skipped_in_a_row} updates in a row were left out, up to iteration {state.iteration}: "
        why += state.events[-1].reason
        if parts.save is None:
            raise RunFailed(f"{why}; there is no earlier checkpoint to go back to")
        try:
            checkpoint = parts.save.take_up(state.iteration - state.skipped_in_a_row)
        except ConfigError as error:
            raise RunFailed(f"{why}; there is no earlier checkpoint to go back to: {error}") from error
        if bad_steps.returns_to(state, checkpoint) == MOST_RETURNS:
            raise RunFailed(
                f"{why}; the run went back to iteration {checkpoint.iteration} {MOST_RETURNS} times already"
            )
        self.state = bad_steps.returned(state, checkpoint)
        self.saved_at = checkpoint.iteration
        self._begin_at_state()
        for logger in parts.loggers:
            logger.went_back(self.state.events[-1], checkpoint.iteration)


def evaluate(parts: Parts, valid: loader.Samples, iteration: int, before_micro_batch: Callable[[], None]) -> None:
    """Tell the mean loss over the first `eval_iters` global batches of `valid`, in nats; the same ones each time."""
    batches = itertools.islice(_iterations(parts, valid, 0), parts.run.loop.eval_iters)
    losses = [parts.engine.eval_step(stopping.Watched(batch, before_micro_batch)) for batch in batches]
    loss = sum(losses) / len(losses)
    for logger in parts.loggers:
        logger.evaluation(iteration, loss)


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
