"""The composition root: builds every part of a run in order, then starts the loop. Read this file first.

    argv + DeepSpeed JSON -> RunConfig -> refusals -> process group -> mesh -> model -> engine -> checkpoint -> loop

Everything that can be refused is refused before the process group exists. Exit codes: 0 done, 1 the run failed,
2 the user's mistake, told in one message.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllama_mcore.config import cli, describe, flags, records, rules
from tinyllama_mcore.config.schema import ConfigError, RunConfig, RunFailed
from tinyllama_mcore.parallel import launch

if TYPE_CHECKING:
    from tinyllama_mcore.checkpoint.manifest import Manifest, RunState
    from tinyllama_mcore.checkpoint.store import TensorStore
    from tinyllama_mcore.data.blend import BlendedSamples
    from tinyllama_mcore.data.tokenizer import Vocabulary
    from tinyllama_mcore.engine.protocol import ShardingEngine
    from tinyllama_mcore.model.gpt import ModelChunks
    from tinyllama_mcore.parallel.mesh import Mesh

SAMPLE_CORPUS = Path("data/sample")
"""Where the built-in corpus is prepared, under the working directory."""
SAMPLE_VOCABULARY = 2048
"""Pieces of the built-in corpus's tokenizer where the recipe takes any number."""


LEAVE_AFTER_S = 3.0
"""Seconds that other ranks wait before they leave a refused run: launchers kill every rank at the first exit, and the
first rank has to have told why."""


def main(argv: Sequence[str]) -> int:
    """Run one process of the job; returns the exit code."""
    launch.quiet_third_parties()
    try:
        place = launch.read()
    except ConfigError as mistake:  # every rank tells: which of them speaks for the job is what is not known
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    with launch.interrupted_quietly():
        code = cli.exit_code(lambda: _pretrain(argv, place), speak=place.rank == 0)
    if code == 2 and place.rank != 0:
        time.sleep(LEAVE_AFTER_S)
    return code


def _pretrain(argv: Sequence[str], place: launch.Launch) -> int:
    """From argv to the end of the run."""
    given = flags.read(argv)
    if given.dry_run:
        return _dry_run(argv, place)
    if given.world_size is not None:
        raise ConfigError(
            f"--world-size {given.world_size} is for --dry-run alone: a launcher says how many processes a run has; "
            "leave it out, or add --dry-run"
        )
    run = cli.parse(argv, world_size=place.world_size, has_gpu=launch.has_gpu)
    rules.check(run, has_gpu=launch.has_gpu)
    try:
        return _train(_with_data(run), place)
    except RunFailed as error:
        if place.rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def _dry_run(argv: Sequence[str], place: launch.Launch) -> int:
    """Refuse what a start would refuse before its process group, then tell what the run needs.

    Data, tokenizer and checkpoint are opened where all are here; what is not is told. The built-in corpus is not
    prepared for it. A world that is not this job's is taken to have GPUs.
    """
    from tinyllama_mcore.planning import dry_run

    run = cli.parse(argv, world_size=place.world_size, has_gpu=launch.has_gpu)
    elsewhere = run.layout.world_size != place.world_size
    missing = dry_run.absent(run, has_gpu=lambda: elsewhere or launch.has_gpu())
    changed: Iterable[str] = ()
    if run.data.blend and not missing:
        run, inputs = _opened(run)
        changed = _changed(run, inputs)
    elif run.model.vocab_size is None:
        note = f"the tokenizer's vocabulary is not known here: taken to be {SAMPLE_VOCABULARY:,}, the built-in corpus's"
        run = replace(run, model=replace(run.model, vocab_size=SAMPLE_VOCABULARY), notes=(*run.notes, note))
    if place.rank == 0:
        print(*dry_run.lines(run, missing), *changed, sep="\n", flush=True)
    return 0


def _with_data(run: RunConfig) -> RunConfig:
    """The run on the built-in corpus, where no data was named. One process prepares it, the others wait."""
    if run.data.blend:
        return run
    from tinyllama_mcore.data import sample_corpus

    sample = sample_corpus.ensure(SAMPLE_CORPUS, run.model.vocab_size or SAMPLE_VOCABULARY)
    data = replace(run.data, blend=sample.blend, tokenizer_model=sample.tokenizer_model)
    note = f"no --data-path given: the built-in corpus, prepared once in {SAMPLE_CORPUS}"
    return replace(run, data=data, notes=(*run.notes, note))


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What a run reads, checked and opened before any process group."""

    vocabulary: Vocabulary
    train: BlendedSamples
    valid: BlendedSamples | None
    checkpoint: tuple[Path, Manifest] | None
    """Folder and manifest of what the run goes on from; sizes alone are verified until all ranks `_agreed`."""

    def samples_to_come(self, run: RunConfig) -> tuple[int, int]:
        """The samples [first, last) that the run will train on."""
        iteration, first = 0, 0
        if self.checkpoint is not None:
            state = self.checkpoint[1].state
            iteration, first = state.iteration, state.consumed_samples
        return first, first + (run.batch.train_iters - iteration) * run.batch.global_batch_size

    def order(self, run: RunConfig) -> dict[str, Any]:
        """All that the order of samples depends on."""
        weights = [weight for weight, _ in run.data.blend]
        return {
            "seed": run.seed,
            "sequence length": run.batch.seq_length,
            "split": list(run.data.split),
            "weights": weights,
            "prefixes": list(self.train.prefixes),
            "datasets": self.train.fingerprints,
            "tokens": self.train.token_samples,
            "tokenizer": self.vocabulary.sha256,
            "inter-document masking": run.data.inter_document_masking,
            **self.train.past.plain(),
        }


def _opened(run: RunConfig) -> tuple[RunConfig, _Inputs]:
    """The run with the vocabulary of its data, and all that it reads."""
    from tinyllama_mcore.data.receipt import vocabulary_of
    from tinyllama_mcore.training import outputs

    prefixes = [prefix for _, prefix in (*run.data.blend, *run.data.valid_blend)]
    vocabulary = vocabulary_of(prefixes, run.data.tokenizer_model)
    run = rules.with_vocab_size(run, vocabulary.vocab_size, run.data.tokenizer_model or "of the data")
    run, inputs = _open_inputs(run, vocabulary)
    outputs.refuse_taken(run, inputs.checkpoint)
    inputs.train.refuse_unwritable_cache(*inputs.samples_to_come(run))
    if inputs.valid is not None:
        inputs.valid.refuse_unwritable_cache(0, run.loop.eval_iters * run.batch.global_batch_size)
    return run, inputs


def _open_inputs(run: RunConfig, vocabulary: Vocabulary) -> tuple[RunConfig, _Inputs]:
    """Open data and checkpoint; every refusal that they can cause comes from here."""
    from tinyllama_mcore.checkpoint import choice
    from tinyllama_mcore.data.blend import open_blend, refuse_training_data
    from tinyllama_mcore.data.document_ends import refuse_unmarked

    def samples(split: str) -> BlendedSamples | None:
        return open_blend(run.data, split=split, seq_length=run.batch.seq_length, seed=run.seed, vocabulary=vocabulary)

    train = samples("train")
    assert train is not None  # --split always leaves a share to train on
    valid = samples("valid") if run.loop.eval_interval else None
    if run.loop.eval_interval and valid is None:
        shares = ",".join(f"{share:g}" for share in run.data.split)
        raise ConfigError(
            f"--eval-interval {run.loop.eval_interval} needs validation samples, but --split {shares} leaves none: "
            "give its second number a share, e.g. 99,1,0, or name other data with --valid-data-path"
        )
    if valid is not None and run.data.valid_blend:
        refuse_training_data(train, valid)
    if run.data.inter_document_masking:
        refuse_unmarked([*train.prefixes, *(valid.prefixes if valid else ())], vocabulary)
    inputs = _Inputs(vocabulary=vocabulary, train=train, valid=valid, checkpoint=None)
    if run.checkpoint.load is None:
        return run, inputs
    found = choice.newest_by_size(Path(run.checkpoint.load), run.checkpoint.iteration)
    return _going_on_from(run, inputs, found)


def _going_on_from(run: RunConfig, inputs: _Inputs, found: tuple[Path, Manifest]) -> tuple[RunConfig, _Inputs]:
    """The run and its inputs with a checkpoint.

    It has to be of this model and, unless they may change, of this order of samples and this schedule.
    """
    from tinyllama_mcore.checkpoint import compatibility, resume

    compatibility.refuse_other_model(*found, run)
    past = compatibility.past(*found, inputs.order(run), may_change=run.checkpoint.allow_data_change)
    run = resume.with_kept_schedule(run, found[1])
    resume.refuse_change(*found, run)
    return run, replace(inputs, checkpoint=found, train=inputs.train.after(past))


def _agreed(run: RunConfig, inputs: _Inputs, place: launch.Launch) -> tuple[RunConfig, _Inputs]:
    """The run and its inputs with a checkpoint that every rank knows to be whole to the last byte. Collective.

    Before that, `--save` is locked: no other job writes there.
    """
    from tinyllama_mcore.checkpoint import choice, lock

    load, save, begins = run.checkpoint.load, run.checkpoint.save, -1
    if save is not None:
        lock.take(Path(save))
    if load is not None:
        found = choice.agree(Path(load), run.checkpoint.iteration)
        run, inputs = _going_on_from(run, inputs, found)
        begins = found[1].state.iteration
    if place.rank == 0 and save is not None:
        for folder in choice.abandon_newer(Path(save), begins):
            print(f"set aside    {folder}: the run begins before it", flush=True)
    return run, inputs


def _train(run: RunConfig, place: launch.Launch) -> int:
    """Build the parts and run the loop."""
    import torch

    from tinyllama_mcore.checkpoint import resume
    from tinyllama_mcore.checkpoint.store import TensorStore
    from tinyllama_mcore.model import gpt
    from tinyllama_mcore.parallel import mesh as meshes
    from tinyllama_mcore.training import loggers, loop, metrics, outputs

    run, inputs = _opened(run)
    tensor_parallel = run.layout.tensor_model_parallel_size > 1
    launch.start_process_group(place, run.loop.distributed_timeout_minutes, tensor_parallel=tensor_parallel)
    run, inputs = _agreed(run, inputs, place)
    if (finished := resume.nothing_left(run, inputs.checkpoint)) is not None:
        if place.rank == 0:
            print(finished, flush=True)
        launch.leave_process_group()
        return 0
    mesh = meshes.build(run.layout, run.seed)
    engine = _engine(run, mesh, gpt.build(run, mesh))
    tensors = TensorStore(run.model, mesh)
    state = _fill(run, mesh, engine, tensors, inputs)
    if mesh.is_first:
        _announce(run, inputs, engine, state)
        outputs.record(run)
    prepare = partial(inputs.train.prepare, builds=mesh.is_first, barrier=torch.distributed.barrier)
    if inputs.valid is not None:
        evaluated = run.loop.eval_iters * run.batch.global_batch_size
        inputs.valid.prepare(0, evaluated, builds=mesh.is_first, barrier=torch.distributed.barrier)
    meter = metrics.meter_for(run)
    parts = loop.Parts(
        run=run,
        mesh=mesh,
        engine=engine,
        train=inputs.train,
        valid=inputs.valid,
        prepare=prepare,
        consumed=inputs.train.consumed,
        document_end=inputs.vocabulary.eod if run.data.inter_document_masking else None,
        meter=meter,
        loggers=loggers.loggers_for(run, meter, rank=mesh.rank, start_iteration=state.iteration),
        save=_Saver(run, inputs, engine, tensors) if run.checkpoint.save else None,
    )
    try:
        loop.train(parts, state)
    finally:
        for logger in parts.loggers:
            logger.close()
    launch.leave_process_group()
    return 0


def _engine(run: RunConfig, mesh: Mesh, model: ModelChunks) -> ShardingEngine:
    """The engine that the JSON asks for."""
    if run.sharding.fsdp is None:
        from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(run, mesh, model)
    from tinyllama_mcore.engine.fsdp_engine import FsdpEngine

    return FsdpEngine(run, mesh, model)


def _fill(run: RunConfig, mesh: Mesh, engine: ShardingEngine, tensors: TensorStore, inputs: _Inputs) -> RunState:
    """Give the engine its weights: the checkpoint's, else the initial ones."""
    from tinyllama_mcore.checkpoint import reader
    from tinyllama_mcore.checkpoint.manifest import RunState
    from tinyllama_mcore.model.initialize import initial_shards

    if inputs.checkpoint is None:
        engine.load_state(initial_shards(run.model, mesh.tensor, run.seed), 0)
        return RunState()
    folder, manifest = inputs.checkpoint
    reader.load(folder, manifest, engine, tensors)
    return manifest.state


def _announce(run: RunConfig, inputs: _Inputs, engine: ShardingEngine, state: RunState) -> None:
    """Print the run's arithmetic, once."""
    from tinyllama_mcore.config.parameters import count_parameters

    epochs = inputs.train.epochs(inputs.samples_to_come(run)[1])
    for line in describe.lines(run, parameters=count_parameters(run.model), dataset_epochs=epochs):
        print(line)
    if inputs.train.past.start:
        print(f"blend        {inputs.train.told()}")
    print(f"engine       {engine.describe()}")
    print(f"weights      read back as they were given, in {engine.check_seconds:.3f} s of {launch.process_age():.1f} s")
    if inputs.checkpoint is not None:
        print(
            *(f"going on     from {inputs.checkpoint[0]}, iteration {state.iteration:,}", *_changed(run, inputs)),
            sep="\n",
        )


def _changed(run: RunConfig, inputs: _Inputs) -> list[str]:
    """What is another value in the checkpoint than in this run, in lines."""
    from tinyllama_mcore.checkpoint import resume

    return [] if inputs.checkpoint is None else list(resume.lines(inputs.checkpoint[1], run))


class _Saver:
    """Writes the run's checkpoints; called with the state on every rank. See `loop.Saver`."""

    def __init__(self, run: RunConfig, inputs: _Inputs, engine: ShardingEngine, tensors: TensorStore) -> None:
        """Collective. Keeps host memory for the copies where the run trains on while they are written."""
        from tinyllama_mcore.checkpoint.background import BackgroundWriter
        from tinyllama_mcore.engine.protocol import STATE_KINDS

        assert run.checkpoint.save is not None
        self._run, self._inputs, self._engine, self._tensors, self._kinds = run, inputs, engine, tensors, STATE_KINDS
        self._directory = Path(run.checkpoint.save)
        self._writer = BackgroundWriter(self._directory, run.checkpoint.keep_latest)
        if run.checkpoint.async_save:
            tensors.reserve(STATE_KINDS)

    @property
    def failure(self) -> str | None:
        """See `loop.Saver`."""
        return self._writer.failure

    def __call__(self, state: RunState) -> None:
        """See `loop.Saver`. At most one save is under way."""
        import torch

        from tinyllama_mcore.checkpoint import probe
        from tinyllama_mcore.checkpoint.manifest import Manifest
        from tinyllama_mcore.config.parameters import count_parameters

        manifest = Manifest(
            state=state,
            run=records.to_plain(self._run),
            provenance={
                "order": self._inputs.order(self._run),
                "versions": {name: version(name) for name in ("torch", "megatron-core", "deepspeed")},
            },
            parameters=count_parameters(self._run.model),
            kinds=self._kinds,
        )
        self._writer.finish()
        pieces: dict[str, torch.Tensor] = dict(self._tensors.collect(self._engine, self._kinds))
        pieces |= probe.take(self._engine, self._run, keeps=torch.distributed.get_rank() == 0)
        self._writer.start(pieces, manifest)
        if not self._run.checkpoint.async_save:
            self._writer.commit()

    def hurry(self) -> None:
        """See `loop.Saver`."""
        self._writer.hurry()

    def finish(self) -> None:
        """See `loop.Saver`."""
        self._writer.finish()

    def take_up(self, latest: int) -> RunState:
        """See `loop.Saver`."""
        import torch

        from tinyllama_mcore.checkpoint import choice, reader

        self._writer.finish()
        folder, saved = choice.agree(self._directory, latest=latest)
        reader.load(folder, saved, self._engine, self._tensors)
        if torch.distributed.get_rank() == 0:
            choice.abandon_newer(self._directory, saved.state.iteration)
        return saved.state
