"""Opens what a run reads and the checkpoint that it resumes from: once on each rank, then on all ranks together.

Before the process group exists each rank looks at headers, manifests and sizes, so that everything that can be refused
is refused there. Once it exists, all ranks read the checkpoint to the last byte and agree on it. Neighbours:
`selection` picks the checkpoint, `compatibility` and `changed_recipe` compare it with the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tinyllama_mcore.checkpoint import changed_recipe, compatibility, planned_blends, selection
from tinyllama_mcore.checkpoint.manifest import Checkpoint, RunState
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import TRACKER
from tinyllama_mcore.config.rules.data import blends
from tinyllama_mcore.config.rules.model import with_vocab_size
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend, refuse_training_data
from tinyllama_mcore.sampling.document_ends import refuse_unmarked
from tinyllama_mcore.sampling.sample_order import SampleOrder


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Data and checkpoint of a run, opened."""

    vocabulary: Vocabulary
    """Ids of the tokenizer that made the data."""
    train: BlendedSamples
    """Samples to train on."""
    valid: BlendedSamples | None
    """Samples to validate on; None where the run never does."""
    checkpoint: Checkpoint | None = None
    """The one to resume from; only sizes are verified until all ranks `agree`."""

    @property
    def state(self) -> RunState:
        """Where the run begins: how far the checkpoint's has come."""
        return RunState() if self.checkpoint is None else self.checkpoint.manifest.state

    def samples_in_all(self, run: RunConfig) -> int:
        """Samples that the run will have trained on at its end."""
        left = run.batch.train_iters - self.state.iteration
        return run.batch.sizes.samples_before(left, consumed=self.state.consumed_samples)

    def order(self, run: RunConfig, samples: int) -> SampleOrder:
        """The order of the run's samples, as it stands where so many of them are consumed."""
        weights, datasets, history = self.train.blend_at(samples)
        return SampleOrder(
            seed=run.seed,
            seq_length=run.batch.seq_length,
            split=run.data.split,
            tokenizer_sha256=self.vocabulary.sha256,
            inter_document_masking=run.data.inter_document_masking,
            weights=weights,
            datasets=datasets,
            history=history,
        )


def open_inputs(run: RunConfig) -> tuple[RunConfig, Inputs]:
    """Open data and checkpoint. Not collective.

    Returns:
        The run with the vocabulary of its data and, where it asks for that, the schedule of its checkpoint; and what
        it reads.

    Raises:
        ConfigError: the data do not fit the run, the checkpoint does not, or a file that it needs cannot be written.
    """
    data = run.data
    prefixes = [prefix for _, blend in blends(run) for _, prefix in blend]
    vocabulary = vocabulary_of(prefixes, data.tokenizer_model, data.tokenizer_type, data.eod_token)
    run = with_vocab_size(run, vocabulary.vocab_size, data.tokenizer_model or "of the data")
    run = replace(run, data=replace(data, eod=vocabulary.eod))
    inputs = _open_data(run, vocabulary)
    kept = run.checkpoint
    if kept.load is not None:
        or_since = selection.is_one(kept.load, kept.save)
        found = selection.newest_by_size(Path(kept.load), kept.iteration, or_since=or_since)
        run, inputs = _resumed(found, run, inputs)
    inputs.train.refuse_unwritable_cache(inputs.state.consumed_samples, inputs.samples_in_all(run))
    if inputs.valid is not None:
        inputs.valid.refuse_unwritable_cache(0, run.loop.eval_iters * run.batch.global_batch_size)
    return run, inputs


def agree(run: RunConfig, inputs: Inputs) -> tuple[RunConfig, Inputs]:
    """Resume from a checkpoint of which the ranks together have verified every byte. Collective; `--save` is locked.

    Checkpoints in `--save` that are newer than it are set aside.

    Raises:
        ConfigError: on every rank alike, where no checkpoint is whole.
        RunFailed: on every rank alike, where a newer checkpoint cannot be set aside.
    """
    load, save, begins = run.checkpoint.load, run.checkpoint.save, -1
    if load is not None:
        found = selection.agree(Path(load), run.checkpoint.iteration, or_since=selection.is_one(load, save))
        run, inputs = _resumed(found, run, inputs)
        begins = found.manifest.state.iteration
    newer = "the checkpoint is newer than the one that this run starts from"
    for path in selection.abandon_newer(Path(save), begins) if save is not None else ():
        why = "it is another program's tracker" if path.name.endswith(TRACKER) else newer
        print(f"renamed      to {path}: {why}", flush=True)
    return run, inputs


def _open_data(run: RunConfig, vocabulary: Vocabulary) -> Inputs:
    """The samples to train on and to validate on. ConfigError where they do not fit the run."""

    def samples(split: str) -> BlendedSamples | None:
        return open_blend(run.data, split=split, seq_length=run.batch.seq_length, seed=run.seed, vocabulary=vocabulary)

    train = samples("train")
    assert train is not None  # --split always leaves a share to train on
    valid = samples("valid") if run.loop.eval_interval else None
    if run.loop.eval_interval and valid is None:
        shares = ",".join(f"{share:g}" for share in run.data.split)
        raise ConfigError(
            f"--eval-interval {run.loop.eval_interval} needs validation samples, but --split {shares} leaves none: "
            "make its second number larger than 0, e.g. 99,1,0, or name other data with --valid-data-path"
        )
    if valid is not None and run.data.valid_blend:
        refuse_training_data(train, valid)
    if run.data.inter_document_masking:
        refuse_unmarked([*train.prefixes, *(valid.prefixes if valid else ())], vocabulary)
    return Inputs(vocabulary=vocabulary, train=train, valid=valid)


def _resumed(found: Checkpoint, run: RunConfig, inputs: Inputs) -> tuple[RunConfig, Inputs]:
    """The run and its inputs, resumed from a checkpoint.

    Raises:
        ConfigError: it is of another model or, where they may not change, of other samples or another schedule.
    """
    manifest = found.manifest
    compatibility.refuse_other_model(found, run)
    run = _told_of_going_on(found, run)
    consumed, may_change = manifest.state.consumed_samples, run.checkpoint.allow_data_change
    run = planned_blends.replanned(run, manifest)
    inputs = replace(inputs, train=inputs.train.planned([later.first_sample for later in run.data.later_blends]))
    hint = planned_blends.hint(run, manifest)
    history = compatibility.blend_history(found, inputs.order(run, consumed), may_change=may_change, hint=hint)
    run = changed_recipe.with_kept_schedule(run, manifest)
    changed_recipe.refuse_change(found, run)
    return run, replace(inputs, checkpoint=found, train=inputs.train.after(history, consumed))


def _told_of_going_on(found: Checkpoint, run: RunConfig) -> RunConfig:
    """The run with a note where it was started again, after it had gone back to `--iteration`."""
    back, now = run.checkpoint.iteration, found.manifest.state.iteration
    note = (
        f"--iteration {back}: a run with this flag went back there and saved iteration {now}: resuming from that. To "
        f"go back once more, give --load {run.checkpoint.load} with another --save"
    )
    return run if back in (None, now) or note in run.notes else replace(run, notes=(*run.notes, note))
