"""A run that resumes with other values than its checkpoint's: the table of what changes, and what is refused.

A rate that jumps, or a schedule that says other rates for iterations already trained, needs --override-schedule.
Neighbours: `compatibility` compares the model and the order of samples, `optim.schedule` gives the rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Manifest
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import OptimizerConfig, RunConfig
from tinyllama_mcore.optim.schedule import learning_rate, turns

LARGEST_JUMP = 1.5
"""Largest factor, up or down, by which the rate of the next iteration may change without a flag that allows it."""
LOOKED_AT = 4096
"""Iterations already trained whose rates are compared, evenly spread, besides those where a formula changes."""
KEEP, CHANGE = "--use-checkpoint-opt_param-scheduler", "--override-schedule"

EFFECTS: Mapping[tuple[str, str], str] = {
    ("optimizer", "lr"): "scales the rate of every iteration",
    ("optimizer", "min_lr"): "moves the rate of every iteration after warm-up",
    ("optimizer", "lr_warmup_iters"): "moves the warm-up, and the decay after it",
    ("optimizer", "lr_decay_style"): "changes the rate after warm-up",
    ("optimizer", "lr_decay_iters"): "moves the end of the decay (None: at train_iters)",
    ("optimizer", "lr_wsd_decay_style"): "changes the shape of WSD's decay",
    ("optimizer", "lr_wsd_decay_iters"): "moves the begin of WSD's decay, so many iterations before its end",
    ("optimizer", "lr_index"): "changes what the schedule counts",
    ("batch", "train_iters"): "moves the end of the run, and of the decay where lr_decay_iters is None",
    ("batch", "global_batch_size"): "samples continue in order; the schedule counts iterations, now of other sizes",
    ("batch", "rampup_batch_size"): "samples continue in order, in iterations of other sizes while it lasts",
    ("optimizer", "adam_beta1"): "Adam's first moment forgets at another pace from here on",
    ("optimizer", "adam_beta2"): "Adam's second moment forgets at another pace from here on",
    ("optimizer", "adam_eps"): "changes updates of small gradients from here on",
    ("optimizer", "weight_decay"): "changes how much each update shrinks the weights from here on",
    ("optimizer", "weight_decay_on"): "changes which weights are shrunk from here on",
    ("optimizer", "clip_grad"): "changes the largest gradient norm from here on",
    ("sharding", "precision"): "changes the rounding of the forward and backward pass from here on",
    ("sharding", "grad_accum_dtype"): "changes the rounding of summed gradients from here on",
    ("float8", "recipe"): "changes the rounding of the forward and backward pass from here on",
    ("float8", "num_layers_at_start_in_bf16"): "changes which layers round to float8 from here on",
    ("float8", "num_layers_at_end_in_bf16"): "changes which layers round to float8 from here on",
    ("loop", "loss_spike_deviations"): "changes which updates are skipped from here on",
    ("loop", "max_skipped_in_a_row"): "changes when the run rolls back to a checkpoint",
}
"""(block, field) of RunConfig -> what another value does to a run that resumes."""

SCHEDULE = (
    ("optimizer", "lr"),
    ("optimizer", "min_lr"),
    ("optimizer", "lr_warmup_iters"),
    ("optimizer", "lr_decay_style"),
    ("optimizer", "lr_decay_iters"),
    ("optimizer", "lr_wsd_decay_style"),
    ("optimizer", "lr_wsd_decay_iters"),
    ("optimizer", "lr_index"),
    ("batch", "train_iters"),
)
"""The fields that the learning rate depends on."""
TAKEN = (*(name for block, name in SCHEDULE if block == "optimizer"), "weight_decay")
"""Fields of the optimizer that KEEP takes from the checkpoint: what Megatron-LM's scheduler keeps."""


class Change(NamedTuple):
    """A value that is another one in the checkpoint."""

    name: str
    """Name of the field."""
    there: Any
    """Value in the checkpoint."""
    here: Any
    """Value of this command."""
    effect: str
    """What that does."""


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    """The rate as a function of the iteration."""

    optimizer: OptimizerConfig
    train_iters: int

    @classmethod
    def of(cls, manifest: Manifest) -> _Schedule:
        """The one that a checkpoint was trained under."""
        return cls(optimizer=manifest.config.optimizer, train_iters=manifest.config.batch.train_iters)

    def rate(self, iteration: int) -> float:
        """Learning rate of the iteration after so many; those whose update was skipped count."""
        return learning_rate(iteration, self.optimizer, self.train_iters)

    def turns(self) -> set[int]:
        """Iterations where the formula changes, with the ones before and after."""
        return {turn + by for turn in turns(self.optimizer, self.train_iters) for by in (-1, 0, 1)}

    def end(self) -> str:
        """How it ends, in words."""
        if self.optimizer.lr_decay_style == "constant":
            return "it never falls"
        end = self.optimizer.decay_end(self.train_iters)
        return f"its decay ends at iteration {end:,}, then the rate stays {self.optimizer.min_lr:g}"


def with_kept_schedule(run: RunConfig, manifest: Manifest) -> RunConfig:
    """The run under the checkpoint's schedule, where KEEP asks for it; a note says what was taken."""
    if not (run.checkpoint.use_checkpoint_opt_param_scheduler and _was_trained(manifest)):
        return run
    there = _Schedule.of(manifest)
    kept = {name: getattr(there.optimizer, name) for name in TAKEN}
    here = run.optimizer
    if there.optimizer.lr_decay_style != "constant":  # which has no end
        kept["lr_decay_iters"] = there.optimizer.decay_end(there.train_iters)
        here = replace(here, lr_decay_iters=here.decay_end(run.batch.train_iters))
    taken = [
        f"{name} {_shown(value)} in place of {_shown(getattr(here, name))}"
        for name, value in kept.items()
        if value != getattr(here, name)
    ]
    notes = (f"{KEEP}: {', '.join(taken)}",) if taken else ()
    return replace(run, optimizer=replace(run.optimizer, **kept), notes=(*run.notes, *notes))


def refuse_change(checkpoint: Checkpoint, run: RunConfig) -> None:
    """Refuse changes of the schedule that no flag asks for.

    Raises:
        ConfigError: the run is shorter than the checkpoint's iteration; or its schedule is another one than the
            checkpoint was trained under, and nothing says that it may be.
    """
    folder, manifest = checkpoint
    if not _was_trained(manifest):
        return
    _refuse_shorter(checkpoint, run)
    there, here = _Schedule.of(manifest), _Schedule(optimizer=run.optimizer, train_iters=run.batch.train_iters)
    iteration = manifest.state.iteration
    lived = next((i for i in _looked_at(iteration, there, here) if there.rate(i) != here.rate(i)), None)
    before, after = there.rate(iteration), here.rate(iteration)
    jumps = not before / LARGEST_JUMP <= after <= before * LARGEST_JUMP
    if run.checkpoint.override_schedule or (lived is None and not jumps):
        return
    differing = "; ".join(
        f"{change.name} is {_shown(change.there)} in the checkpoint and {_shown(change.here)} in this command"
        for change in changes(manifest, run, SCHEDULE)
    )
    past = (
        ""
        if lived is None
        else f"Iteration {lived + 1} had the rate {there.rate(lived):.3e} and would have had {here.rate(lived):.3e}. "
    )
    raise ConfigError(
        f"checkpoint {folder} was trained with another learning-rate schedule: {differing}. {past}The next "
        f"iteration, {iteration + 1}, has {before:.3e} under the checkpoint's schedule and {after:.3e} under this "
        f"command's. Give the checkpoint's values; or {KEEP}, which takes them ({there.end()}); or {CHANGE}, "
        "which takes this command's from here on"
    )


def nothing_left(run: RunConfig, checkpoint: Checkpoint | None) -> str | None:
    """The message if the checkpoint is of the run's last iteration; None if there is something left to train."""
    if checkpoint is None or checkpoint.manifest.state.iteration < run.batch.train_iters:
        return None
    folder, manifest = checkpoint
    how = f" with {KEEP} (the rate stays as it ended) or {CHANGE} (a new decay)"
    if run.optimizer.lr_decay_style == "constant":
        how = ", and --lr-decay-style WSD with --lr-wsd-decay-iters for it to end in a decay"
    return (
        f"nothing left {folder} is of iteration {manifest.state.iteration:,}, and the run ends at "
        f"{run.batch.train_iters:,}: it is finished, and nothing was trained. To train more, give a larger "
        f"--train-iters{how}; tinyllama-merge exports it"
    )


def lines(manifest: Manifest, run: RunConfig) -> Iterator[str]:
    """The table of values that differ from the checkpoint's, with the next iteration's rate under both schedules."""
    found = list(changes(manifest, run))
    if not found:
        return
    iteration = manifest.state.iteration
    there, here = _Schedule.of(manifest), _Schedule(optimizer=run.optimizer, train_iters=run.batch.train_iters)
    rows = [("changed", "in the checkpoint", "of this command", "what it does")]
    rows += [(change.name, _shown(change.there), _shown(change.here), change.effect) for change in found]
    told = {iteration: f"of the next iteration, {iteration + 1:,}, under each schedule"}
    if there.rate(iteration) == here.rate(iteration):
        coming = sorted(i for i in there.turns() | here.turns() if iteration < i < run.batch.train_iters)
        first = next((i for i in coming if there.rate(i) != here.rate(i)), None)
        told |= {} if first is None else {first: f"of iteration {first + 1:,}, the first that differs"}
    rows += [("rate", f"{there.rate(i):.3e}", f"{here.rate(i):.3e}", words) for i, words in told.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "             " + "  ".join([*cells, row[3]])


def changes(manifest: Manifest, run: RunConfig, fields: Sequence[tuple[str, str]] = tuple(EFFECTS)) -> Iterator[Change]:
    """The values that differ from the checkpoint's. Imported weights were trained by no recipe: nothing differs."""
    for block, name in fields if _was_trained(manifest) else ():
        there, here = (getattr(getattr(config, block), name) for config in (manifest.config, run))
        if there != here:
            yield Change(name, there, here, EFFECTS[block, name])


def _refuse_shorter(checkpoint: Checkpoint, run: RunConfig) -> None:
    """ConfigError where the run ends before the checkpoint."""
    folder, iteration, end = checkpoint.folder, checkpoint.manifest.state.iteration, run.batch.train_iters
    if end < iteration:
        earlier = [each for each in layout.iterations(folder.parent) if each < end]
        back = f", or resume from an earlier checkpoint with --iteration {earlier[-1]}" if earlier else ""
        raise ConfigError(
            f"--train-iters {end} is below iteration {iteration} of checkpoint {folder}: nothing is left to do. Give "
            f"more than {iteration} to train on{back}"
        )


def _was_trained(manifest: Manifest) -> bool:
    """Whether updates of a run are in it; imported weights have no order of samples and no recipe of their own."""
    return manifest.provenance.order is not None and manifest.state.iteration > 0


def _looked_at(iterations: int, *schedules: _Schedule) -> list[int]:
    """Those of so many iterations that tell whether schedules agree: LOOKED_AT, the last, and where one turns."""
    if iterations <= LOOKED_AT:
        return list(range(iterations))
    spread = {(number + 1) * iterations // LOOKED_AT - 1 for number in range(LOOKED_AT)}
    turning = set().union(*(schedule.turns() for schedule in schedules))
    return sorted(spread | {iteration for iteration in turning if 0 <= iteration < iterations})


def _shown(value: Any) -> str:  # noqa: ANN401
    return f"{value:g}" if isinstance(value, float) else str(value)
