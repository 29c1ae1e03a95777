"""The loop: iterations from where the run stands to where it ends, and what happens every so many of them.

It knows no layout and no sharding: a source gives batches, an engine trains, a saver saves, loggers write. Neighbours:
`run` builds the parts, `stopping` says when to leave, `bad_steps` which updates count, `metrics` and `loggers` turn a
step into figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.checkpoint.saver import Saver
from tinyllama_mcore.checkpoint.writer import SaveFailed
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.engine.protocol import StepResult
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.parallel import launch
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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop drives."""

    run: RunConfig
    mesh: Mesh
    engine: ShardingEngine
    train: BatchSource
    valid: BatchSource | None
    """None where the run never evaluates."""
    meter: Meter
    loggers: Sequence[Logger]
    """On the rank that speaks for the job; empty elsewhere."""
    saver: Saver | None
    """None where the run keeps no checkpoints."""
    stragglers: Stragglers | None = None
    """None where the run does not tell them."""


def train(parts: Parts, state: RunState) -> RunState:
    """Train from `state` until the run is done or asked to leave; the last state is saved.

    Raises:
        RunFailed: no checkpoint could be written, no samples could be prepared (what was trained is saved then), or
            too many updates in a row had to be skipped.
    """
    with stopping.stop_signals(speaks=parts.mesh.is_first) as signalled:
        loop = _Loop(parts, state, signalled)
        try:
            return loop.run()
        except SaveFailed as error:
            raise RunFailed(f"{error}. Earlier checkpoints are untouched") from error
        except BaseException as error:
            loop.keep_what_is_being_written(error)
            raise
        finally:
            loop.watchdog.close()
            loop.profiler.close()


class _Loop:
    """Where a run stands."""

    def __init__(self, parts: Parts, state: RunState, signalled: list[int]) -> None:
        self.parts, self.state, self.signalled = parts, state, signalled
        self.started = time.monotonic()
        self.saved_at: int | None = state.iteration
        self.unasked, self.ask_after = 0, 1
        """Micro-batches since ranks asked each other whether to leave, and how many may be: the same on all."""
        self.blends_told = state.consumed_samples  # of the blends that begin with a later sample nothing was said yet
        self.launcher_has_ended = launch.launcher_watch()
        self.watchdog = stopping.Watchdog(parts.run.loop.distributed_timeout_minutes * 60, parts.mesh.rank)
        self.profiler = Profiler(parts.run.loop, speaks=parts.mesh.is_first)
        self._begin_at_state()

    def _begin_at_state(self) -> None:
        """Read batches from the state's next sample on."""
        left = self.parts.run.batch.train_iters - self.state.iteration
        self.batches = self.parts.train.iterations(
            self.state.consumed_samples, left, while_building=self.watchdog.resting
        )

    def run(self) -> RunState:
        """Iterations until the end, or until a rank is asked to leave."""
        run, leave = self.parts.run, False
        failure: IndexFailed | None = None
        while self.state.iteration < run.batch.train_iters and not leave:
            try:
                self._step()
                if self.state.skipped_in_a_row >= run.loop.max_skipped_in_a_row:
                    self._roll_back()
                    continue  # what is due at the checkpoint's iteration was done there, and leaving would not help
                if _due(run.loop.eval_interval, self.state.iteration):
                    self._evaluate()
                leave = self._asked_to_leave() or _due(run.loop.exit_interval, self.state.iteration)
            except stopping.Abandoned:
                leave = True
            except IndexFailed as error:  # on every rank, between two iterations: what is done can be saved
                leave, failure = True, error
            if leave and self.parts.saver is not None and self.saved_at != self.state.iteration:
                self.parts.saver.hurry()
            if _due(run.checkpoint.save_interval, self.state.iteration):
                self._save()
        self._save()
        if self.parts.saver is not None:
            self.parts.saver.finish()
        if failure is not None:
            raise failure
        return self.state

    def _asked_to_leave(self) -> bool:
        """True if any rank was asked to leave. Collective. SaveFailed if a save in the background failed on any."""
        limit, saver = self.parts.run.loop.exit_duration, self.parts.saver
        minutes = (time.monotonic() - self.started) / 60
        leaves = bool(self.signalled) or self.launcher_has_ended() or 0 < limit <= minutes
        word = stopping.LEAVE if leaves else stopping.GOING_ON
        word = stopping.FAILED if saver is not None and saver.failure is not None else word
        (most,) = stopping.agreed(word)
        if most == stopping.FAILED and saver is not None:
            saver.finish()
        return most == stopping.LEAVE

    def _before_micro_batch(self) -> None:
        """Progress was made; about once a second, leave here if any rank was asked to.

        Under a pipeline ranks stand at different micro-batches and pass activations on: they leave after the iteration,
        or after a global batch of an evaluation.
        """
        self.watchdog.beat(f"iteration {self.state.iteration + 1}")
        self.unasked += 1
        if self.parts.mesh.pipeline.size == 1 and self.unasked >= self.ask_after:
            self.unasked = 0
            self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        """Abandon what is under way if any rank was asked to leave. Collective."""
        if self._asked_to_leave():
            raise stopping.Abandoned

    def _step(self) -> None:
        """One iteration and its record."""
        run, before = self.parts.run, self.state
        self._tell_of_blends(before.consumed_samples + run.batch.sizes.after(before.consumed_samples))
        begin = time.perf_counter()
        micro_batches = stopping.Watched(next(self.batches), self._before_micro_batch)
        waited = time.perf_counter() - begin
        lr = learning_rate(before.iteration, run.optimizer, run.batch.train_iters)
        limit = bad_steps.largest_loss(before, run.loop.loss_spike_deviations)
        with self.profiler.over(before.iteration + 1):
            by_group = run.loop.log_grad_norm_by_group and self._logs(before.iteration + 1)
            result = self.parts.engine.train_step(micro_batches, lr, limit, by_group=by_group)
            seconds = time.perf_counter() - begin
            if self.profiler.covers(before.iteration + 1):
                self.watchdog.rest()  # a rank that writes its profile is not stuck
        objection = bad_steps.objection(before, result.loss, run.loop.loss_spike_deviations)
        state = bad_steps.after(before, result, objection, run.batch.sizes.after(before.consumed_samples))
        consumed = self.parts.train.samples.consumed(state.consumed_samples)
        self.state = replace(state, consumed_by_dataset=consumed)
        self.unasked = 0  # the end of an iteration asks
        self._log(before, result, lr, seconds, waited, micro_batches=len(micro_batches))

    def _logs(self, iteration: int) -> bool:
        """Whether an interval of the log ends with the iteration."""
        return _due(self.parts.run.loop.log_interval, iteration) or iteration == self.parts.run.batch.train_iters

    def _tell_of_blends(self, consumed: int) -> None:
        """Tell the loggers of the planned blends that begin in the next iteration, after which so many are consumed."""
        for later in self.parts.run.data.later_blends:
            if self.blends_told <= later.first_sample < consumed:
                for logger in self.parts.loggers:
                    logger.blend_began(self.state.iteration + 1, later)
        self.blends_told = consumed

    def _log(
        self, before: RunState, result: StepResult, lr: float, seconds: float, waited: float, *, micro_batches: int
    ) -> None:
        """Tell the loggers of the iteration that led from `before` to this state. Collective."""
        (memory, wait, longest), state = stopping.agreed(peak_memory_gib(), waited, seconds), self.state
        self.ask_after = stopping.micro_batches_between(micro_batches, longest)
        stragglers, straggler = self.parts.stragglers, None
        if stragglers is not None:
            straggler = stragglers.after(waited, report=self._logs(state.iteration))
        if not self.parts.loggers:
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
        record = step_record(self.parts.meter, outcome)
        for logger in self.parts.loggers:
            logger.step(record)

    def _evaluate(self) -> None:
        """Tell the loggers the validation loss, where there is something to validate on."""
        if self.parts.valid is not None:
            found = evaluate(self.parts, self.parts.valid, self._to_evaluate(self.parts.valid))
            for logger in self.parts.loggers:
                logger.evaluation(self.state.iteration, found)

    def _to_evaluate(self, valid: BatchSource) -> Iterator[Sequence[TokenBatch]]:
        """The global batches of an evaluation, until a rank is asked to leave."""
        for batch in valid.iterations(0, self.parts.run.loop.eval_iters, while_building=self.watchdog.resting):
            self._leave_if_asked()
            yield stopping.Watched(batch, self._before_micro_batch)

    def _save(self) -> None:
        """Save, where the run keeps checkpoints and this state is not saved yet."""
        parts, iteration = self.parts, self.state.iteration
        if parts.saver is not None and self.saved_at != iteration:
            self.watchdog.rest()  # a slow disk is not a stuck rank
            begin = time.perf_counter()
            parts.saver.save(self.state)
            seconds = time.perf_counter() - begin
            self.saved_at = iteration
            for logger in parts.loggers:
                logger.saved(iteration, seconds, in_background=parts.run.checkpoint.async_save)

    def keep_what_is_being_written(self, error: BaseException) -> None:
        """Before this rank ends by an error: wait a while for a save in the background, which would end with it."""
        self.watchdog.rest()
        saver, mesh = self.parts.saver, self.parts.mesh
        speaks = mesh.is_first or not isinstance(error, RunFailed)  # a RunFailed comes on every rank alike
        for words in () if saver is None else saver.last_words(LAST_SAVE_S):
            if speaks:
                print(f"rank {mesh.rank}, {type(error).__name__}: {words}", file=sys.stderr, flush=True)

    def _roll_back(self) -> None:
        """Load the last checkpoint before the skipped updates, and continue after the samples consumed since.

        Raises:
            RunFailed: there is none, or the run rolled back to it too often.
        """
        state, parts = self.state, self.parts
        self.watchdog.rest()
        why = f"{state.skipped_in_a_row} updates in a row were skipped, up to iteration {state.iteration}: "
        why += state.events[-1].reason
        if parts.saver is None:
            raise RunFailed(f"{why}; there is no earlier checkpoint to roll back to")
        try:
            checkpoint = parts.saver.roll_back(state.iteration - state.skipped_in_a_row)
        except ConfigError as error:
            raise RunFailed(f"{why}; there is no earlier checkpoint to roll back to: {error}") from error
        if bad_steps.rollbacks_to(state, checkpoint) == MOST_ROLLBACKS:
            raise RunFailed(
                f"{why}; the run has rolled back to iteration {checkpoint.iteration} before, {MOST_ROLLBACKS} times"
            )
        self.state = bad_steps.rolled_back(state, checkpoint)
        self.blends_told = checkpoint.consumed_samples  # what was told since is dropped
        self.saved_at = None  # the iteration is the checkpoint's, but not the state: who leaves here has to save it
        self.ask_after = 1  # to load took long: ranks ask before they train
        self._begin_at_state()
        for logger in parts.loggers:
            logger.went_back(self.state.events[-1], checkpoint.iteration)


def evaluate(parts: Parts, valid: BatchSource, batches: Iterable[Sequence[TokenBatch]] | None = None) -> Validation:
    """Losses over the first `eval_iters` global batches of `valid`, the same ones each time.

    `batches`: those batches, where something has to happen between them.
    """
    begin = time.perf_counter()
    batches = valid.iterations(0, parts.run.loop.eval_iters) if batches is None else batches
    losses = np.concatenate([parts.engine.eval_step(batch).double().numpy() for batch in batches])
    prefixes, by_dataset = valid.samples.prefixes, {}
    if len(prefixes) > 1:
        drawn_from = np.array([valid.samples.place(sample).dataset for sample in range(len(losses))])
        by_dataset = {p: float(losses[drawn_from == n].mean()) for n, p in enumerate(prefixes) if n in drawn_from}
    return Validation(loss=float(losses.mean()), by_dataset=by_dataset, seconds=time.perf_counter() - begin)


def _due(interval: int, iteration: int) -> bool:
    return interval > 0 and iteration % interval == 0
