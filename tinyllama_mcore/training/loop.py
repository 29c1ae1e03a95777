"""The loop: iterations from where the run stands to where it ends, and what happens every so many of them.

It knows no layout and no sharding: a source gives batches, an engine trains, a saver saves, loggers write. Neighbours:
`run` builds it, `stopping` says when to leave, `bad_steps` which updates count, `metrics` and `loggers` turn a step
into figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.checkpoint.saver import Saver
from tinyllama_mcore.checkpoint.writer import SaveFailed
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.engine.protocol import StepResult
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.loader import BatchSource, IndexFailed, TokenBatch
from tinyllama_mcore.training import bad_steps, stopping
from tinyllama_mcore.training.loggers import Logger
from tinyllama_mcore.training.metrics import Meter, StepOutcome, Validation, peak_memory_gib, step_record
from tinyllama_mcore.training.profile import Profiler
from tinyllama_mcore.training.stragglers import Stragglers

LAST_SAVE_S = 120.0
"""Seconds that a run which fails waits for a save under way: a choice between a lost checkpoint and GPUs that idle."""
MOST_ROLLBACKS = 3
"""Rollbacks to one checkpoint before the run gives up: other samples did not help."""


@dataclass(kw_only=True, eq=False, repr=False)
class Loop:
    """What trains a run, and how far the run has come. Every method is collective."""

    run: RunConfig
    mesh: Mesh
    engine: ShardingEngine
    source: BatchSource
    """Batches to train on."""
    valid: BatchSource | None
    """Batches to validate on; None where the run never evaluates."""
    meter: Meter
    loggers: Sequence[Logger]
    """On the rank that speaks for the job; empty elsewhere."""
    saver: Saver | None
    """None where the run keeps no checkpoints."""
    stragglers: Stragglers | None
    """None where the run does not tell them."""
    state: RunState
    """How far the run has come."""

    leaving: stopping.Leaving = field(init=False)
    """This and the rest are there while it trains."""
    profiler: Profiler = field(init=False)
    batches: Generator[list[TokenBatch], None, None] = field(init=False)
    """From the state's next sample on."""
    saved_at: int | None = field(init=False)
    """Iteration whose state is saved; None: this one's is not, though another of its number was."""
    blends_told: int = field(init=False)
    """Of planned blends that begin with this sample or a later one nothing was said yet."""

    def train(self) -> RunState:
        """Train until the run is done or asked to leave; the last state is saved, and returned.

        Raises:
            RunFailed: no checkpoint could be written, no samples could be prepared (what was trained is saved then),
                or too many updates in a row had to be skipped.
        """
        speaks = self.mesh.is_first
        self.saved_at, self.blends_told = self.state.iteration, self.state.consumed_samples
        with (
            stopping.stop_signals(speaks=speaks) as signalled,
            closing(Profiler(self.run.loop, speaks=speaks)) as self.profiler,
            closing(stopping.Leaving(self.run.loop, self.mesh, self.saver, signalled)) as self.leaving,
        ):
            self._begin_at_state()
            try:
                self._iterate()
            except SaveFailed as error:
                raise RunFailed(f"{error}. Earlier checkpoints are untouched") from error
            except BaseException as error:
                self._keep_what_is_being_written(error)
                raise
        self.batches.close()  # its thread ends with it
        return self.state

    def _begin_at_state(self) -> None:
        """Read batches from the state's next sample on."""
        left = self.run.batch.train_iters - self.state.iteration
        resting = self.leaving.watchdog.resting
        self.batches = self.source.iterations(self.state.consumed_samples, left, while_building=resting)

    def _iterate(self) -> None:
        """Iterations until the end, or until a rank is asked to leave, with all that is due after one; a last save."""
        run, leave = self.run, False
        failure: IndexFailed | None = None
        while self.state.iteration < run.batch.train_iters and not leave:
            try:
                self._step()
                if self.state.skipped_in_a_row >= run.loop.max_skipped_in_a_row:
                    self._roll_back()
                    continue  # what is due at the checkpoint's iteration was done there, and leaving would not help
                if _due(run.loop.eval_interval, self.state.iteration):
                    self._evaluate()
                leave = self.leaving.asked() or _due(run.loop.exit_interval, self.state.iteration)
            except stopping.Abandoned:
                leave = True
            except IndexFailed as error:  # on every rank, between two iterations: what is done can be saved
                leave, failure = True, error
            if leave and self.saver is not None and self.saved_at != self.state.iteration:
                self.saver.hurry()
            if _due(run.checkpoint.save_interval, self.state.iteration):
                self._save()
        self._save()
        if self.saver is not None:
            self.saver.finish()
        if failure is not None:
            raise failure

    def _step(self) -> None:
        """One iteration: its batch, the update, the state after it, its record."""
        self._tell_of_blends()
        before, begin = self.state, time.perf_counter()
        batch = self._next_batch()
        waited = time.perf_counter() - begin
        lr = learning_rate(before.iteration, self.run.optimizer, self.run.batch.train_iters)
        result, seconds = self._update(batch, lr, begin)
        self.state = self._state_after(result)
        self._log(before, result, lr, seconds, waited, micro_batches=len(batch))

    def _next_batch(self) -> stopping.Watched:
        """The micro-batches of the next iteration; before each, leaving may be asked for."""
        return self.leaving.watched(next(self.batches), self._doing)

    def _update(self, batch: stopping.Watched, lr: float, begin: float) -> tuple[StepResult, float]:
        """Train on a batch; what that did, and the seconds since `begin`."""
        iteration = self.state.iteration + 1
        limit = bad_steps.largest_loss(self.state, self.run.loop.loss_spike_deviations)
        with self.profiler.over(iteration):
            by_group = self.run.loop.log_grad_norm_by_group and self._logs(iteration)
            result = self.engine.train_step(batch, lr, limit, by_group=by_group)
            seconds = time.perf_counter() - begin
            if self.profiler.covers(iteration):
                self.leaving.watchdog.rest()  # a rank that writes its profile is not stuck
        return result, seconds

    def _state_after(self, result: StepResult) -> RunState:
        """The state that an update leads to, or one that was skipped."""
        objection = bad_steps.objection(self.state, result.loss, self.run.loop.loss_spike_deviations)
        state = bad_steps.after(self.state, result, objection, self._samples_of_next)
        return replace(state, consumed_by_dataset=self.source.samples.consumed(state.consumed_samples))

    @property
    def _samples_of_next(self) -> int:
        """Sequences of the next iteration, over the whole job."""
        return self.run.batch.sizes.after(self.state.consumed_samples)

    @property
    def _doing(self) -> str:
        """What comes next, for who asks where a rank is stuck."""
        return f"iteration {self.state.iteration + 1}"

    def _logs(self, iteration: int) -> bool:
        """Whether an interval of the log ends with the iteration."""
        return _due(self.run.loop.log_interval, iteration) or iteration == self.run.batch.train_iters

    def _tell_of_blends(self) -> None:
        """Tell the loggers of the planned blends that begin in the next iteration."""
        end = self.state.consumed_samples + self._samples_of_next
        for later in self.run.data.later_blends:
            if self.blends_told <= later.first_sample < end:
                for logger in self.loggers:
                    logger.blend_began(self.state.iteration + 1, later)
        self.blends_told = end

    def _log(
        self, before: RunState, result: StepResult, lr: float, seconds: float, waited: float, *, micro_batches: int
    ) -> None:
        """Tell the loggers of the iteration that led from `before` to this state. Collective."""
        (memory, wait, longest), state = stopping.agreed(peak_memory_gib(), waited, seconds), self.state
        self.leaving.after_iteration(micro_batches, longest)
        straggler = None
        if self.stragglers is not None:
            straggler = self.stragglers.after(waited, report=self._logs(state.iteration))
        if not self.loggers:
            return
        outcome = StepOutcome(
            iteration=state.iteration,
            global_batch_size=state.consumed_samples - before.consumed_samples,
            consumed_samples=state.consumed_samples,
            consumed_by_dataset=state.consumed_by_dataset,
            lm_loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            iteration_time_s=seconds,
            time=time.time(),
            data_wait_s=wait,
            peak_memory_gib=memory,
            skipped=result.skipped,
            skip_reason=state.events[-1].reason if result.skipped else None,
            rollbacks=sum(event.kind == "rolled back" for event in state.events),
            grad_norm_by_group=result.grad_norm_by_group,
            straggler=straggler,
        )
        record = step_record(self.meter, outcome)
        for logger in self.loggers:
            logger.step(record)

    def _evaluate(self) -> None:
        """Tell the loggers the validation loss, where there is something to validate on."""
        if self.valid is not None:
            found = self.evaluate(self.valid, self._to_evaluate(self.valid))
            for logger in self.loggers:
                logger.evaluation(self.state.iteration, found)

    def _to_evaluate(self, valid: BatchSource) -> Iterator[Sequence[TokenBatch]]:
        """The global batches of an evaluation, until a rank is asked to leave."""
        for batch in valid.iterations(0, self.run.loop.eval_iters, while_building=self.leaving.watchdog.resting):
            self.leaving.abandon_if_asked()
            yield self.leaving.watched(batch, self._doing)

    def evaluate(self, valid: BatchSource, batches: Iterable[Sequence[TokenBatch]] | None = None) -> Validation:
        """Losses over the first `eval_iters` global batches of `valid`, the same ones each time.

        `batches`: those batches, where something has to happen between them.
        """
        begin = time.perf_counter()
        batches = valid.iterations(0, self.run.loop.eval_iters) if batches is None else batches
        losses = np.concatenate([self.engine.eval_step(batch).double().numpy() for batch in batches])
        prefixes, by_dataset = valid.samples.prefixes, {}
        if len(prefixes) > 1:
            drawn_from = np.array([valid.samples.place(sample).dataset for sample in range(len(losses))])
            by_dataset = {p: float(losses[drawn_from == n].mean()) for n, p in enumerate(prefixes) if n in drawn_from}
        return Validation(loss=float(losses.mean()), by_dataset=by_dataset, seconds=time.perf_counter() - begin)

    def _save(self) -> None:
        """Save, where the run keeps checkpoints and this state is not saved yet."""
        iteration = self.state.iteration
        if self.saver is not None and self.saved_at != iteration:
            self.leaving.watchdog.rest()  # a slow disk is not a stuck rank
            begin = time.perf_counter()
            self.saver.save(self.state)
            seconds = time.perf_counter() - begin
            self.saved_at = iteration
            for logger in self.loggers:
                logger.saved(iteration, seconds, in_background=self.run.checkpoint.async_save)

    def _keep_what_is_being_written(self, error: BaseException) -> None:
        """Before this rank ends by an error: wait a while for a save in the background, which would end with it."""
        self.leaving.watchdog.rest()
        speaks = self.mesh.is_first or not isinstance(error, RunFailed)  # a RunFailed comes on every rank alike
        for words in () if self.saver is None else self.saver.last_words(LAST_SAVE_S):
            if speaks:
                print(f"rank {self.mesh.rank}, {type(error).__name__}: {words}", file=sys.stderr, flush=True)

    def _roll_back(self) -> None:
        """Load the last checkpoint before the skipped updates, and continue after the samples consumed since.

        Raises:
            RunFailed: there is none, or the run rolled back to it too often.
        """
        state = self.state
        self.leaving.watchdog.rest()
        why = f"{state.skipped_in_a_row} updates in a row were skipped, up to iteration {state.iteration}: "
        why += state.events[-1].reason
        if self.saver is None:
            raise RunFailed(f"{why}; there is no earlier checkpoint to roll back to")
        try:
            checkpoint = self.saver.roll_back(state.iteration - state.skipped_in_a_row)
        except ConfigError as error:
            raise RunFailed(f"{why}; there is no earlier checkpoint to roll back to: {error}") from error
        if bad_steps.rollbacks_to(state, checkpoint) == MOST_ROLLBACKS:
            raise RunFailed(
                f"{why}; the run has rolled back to iteration {checkpoint.iteration} before, {MOST_ROLLBACKS} times"
            )
        self.state = bad_steps.rolled_back(state, checkpoint)
        self.blends_told = checkpoint.consumed_samples  # what was told since is dropped
        self.saved_at = None  # the iteration is the checkpoint's, but not the state: who leaves here has to save it
        self.leaving.ask_next()  # to load took long: ranks ask before they train
        self._begin_at_state()
        for logger in self.loggers:
            logger.went_back(self.state.events[-1], checkpoint.iteration)


def _due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0
