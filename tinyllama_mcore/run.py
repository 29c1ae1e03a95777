"""The composition root: judges a run, joins its job, builds its parts in order, and starts the loop.

    RunConfig -> rules -> data and checkpoint -> process group -> mesh -> model -> engine -> weights -> loop

The command line (`pretrain`) and a program of your own (docs/howto/python.md) start here, so that both are refused
alike: what a process can judge alone before the process group exists, what ranks agree on before the model does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import changed_recipe, lock, reader, resume
from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.checkpoint.resume import Inputs
from tinyllama_mcore.checkpoint.saver import Saver
from tinyllama_mcore.checkpoint.store import TensorStore
from tinyllama_mcore.config import describe, engines, paths
from tinyllama_mcore.config.beginning import begun
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import BatchConfig, RunConfig
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.model import flash, gpt
from tinyllama_mcore.model.initialize import drawn_ahead, initial_shards
from tinyllama_mcore.model.parameters import part_names
from tinyllama_mcore.model.products import swiglu_backend
from tinyllama_mcore.parallel import exchange, launch
from tinyllama_mcore.parallel import mesh as meshes
from tinyllama_mcore.parallel.deterministic import deterministic
from tinyllama_mcore.parallel.first_rank import on_first_rank
from tinyllama_mcore.parallel.launchers import this_process
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.blend import BlendedSamples
from tinyllama_mcore.sampling.loader import BatchSource
from tinyllama_mcore.training import loggers, metrics, outputs, started
from tinyllama_mcore.training.loop import Loop
from tinyllama_mcore.training.stragglers import Stragglers


def train(run: RunConfig) -> RunState:
    """Train a run to its end, or until it is asked to leave. Every process of the job calls this.

    A run whose `checkpoint.save` holds a checkpoint resumes from it, unless `checkpoint.no_load` is set.

    Returns:
        How far the run has come.

    Raises:
        ConfigError: the run cannot be what was asked for; on every rank alike, before anything is trained.
        RunFailed: no checkpoint could be written, no samples could be prepared, or too many updates in a row had to be
            skipped.
    """
    with opened(run) as trainer:
        return trainer.train()


@contextmanager
def opened(run: RunConfig) -> Iterator[Trainer]:
    """A run inside its job, which is joined here and left at the end. Raises what `train` does. Collective."""
    place = this_process()
    if run.layout.world_size != place.world_size:
        raise ConfigError(f"the layout is of {run.layout.world_size} processes, and this job has {place.world_size}")
    run = begun(run)
    legality.check(run, **launch.DEVICE)
    run, inputs = open_inputs(with_data(run))
    save = None if run.checkpoint.save is None else Path(run.checkpoint.save)
    with (
        launch.joined(place, run.loop.distributed_timeout_minutes, one_queue=engines.wants_one_queue(run)),
        deterministic(run.deterministic_mode),
        lock.held(save),
        closing(Trainer(*resume.agree(run, inputs))) as trainer,
    ):
        yield trainer


def with_data(run: RunConfig) -> RunConfig:
    """The run on the built-in corpus, where no data was named. One process prepares it, the others wait."""
    if run.data.blend:
        return run
    # imported here because it needs zstandard, which a run on its own data does not
    from tinyllama_mcore.preprocessing import sample_corpus

    pieces = min(run.model.vocab_size or paths.SAMPLE_VOCABULARY, paths.LARGEST_SAMPLE_VOCABULARY)
    sample = sample_corpus.ensure(paths.SAMPLE_CORPUS, pieces)
    data = replace(run.data, blend=sample.blend, tokenizer_model=sample.tokenizer_model)
    note = f"no --data-path given: the built-in corpus, prepared once in {paths.SAMPLE_CORPUS}"
    return replace(run, data=data, notes=(*run.notes, note))


def open_inputs(run: RunConfig) -> tuple[RunConfig, Inputs]:
    """See `resume.open_inputs`; ConfigError too where the run would overwrite what another one wrote."""
    run, inputs = resume.open_inputs(run)
    outputs.refuse_taken(run, inputs.checkpoint)
    return run, inputs


class Trainer:
    """A run whose data and checkpoint are open; its model is built when first needed. Every method is collective."""

    def __init__(self, run: RunConfig, inputs: Inputs) -> None:
        self.run, self._inputs = run, inputs

    @property
    def state(self) -> RunState:
        """How far the run has come."""
        return self._loop.state if self._is_built else self._inputs.state

    def train(self) -> RunState:
        """Train until the run is done or asked to leave; see `train`."""
        finished = changed_recipe.nothing_left(self.run, self._inputs.checkpoint)
        if finished is None:
            return self._loop.train()
        if torch.distributed.get_rank() == 0:
            print(finished, flush=True)
        return self.state

    def evaluate(self) -> float:
        """Mean validation loss in nats a token over `loop.eval_iters` global batches.

        Raises:
            ConfigError: the run has no validation data.
        """
        valid = self._loop.valid
        if valid is None:
            raise ConfigError("the run has no validation data to evaluate on: loop.eval_interval must be above 0")
        return self._loop.evaluate(valid).loss

    def save(self) -> Path:
        """Write a checkpoint to `checkpoint.save`; returns that directory.

        Raises:
            ConfigError: the run names none.
            SaveFailed: it could not be written.
        """
        saver = self._loop.saver
        if saver is None:
            raise ConfigError("the run keeps no checkpoints: checkpoint.save must name a directory")
        saver.save(self.state)
        saver.finish()
        return saver.directory

    def close(self) -> None:
        """Close the files that the run writes."""
        for logger in self._loop.loggers if self._is_built else ():
            logger.close()

    @property
    def _is_built(self) -> bool:
        return "_loop" in vars(self)

    @cached_property
    def _loop(self) -> Loop:
        """All that trains the run, with the weights loaded."""
        return build(self.run, self._inputs)


def build(run: RunConfig, inputs: Inputs) -> Loop:
    """Every part of a run in its order, with the weights loaded; then the run is announced. Collective.

    Raises:
        ConfigError: what its first rank writes cannot be written.
    """
    mesh = meshes.build(run.layout, run.seed)
    model = gpt.build(run, mesh)
    names = [part for name, _ in model.named_tensors() for part in part_names(name)]
    engine = build_engine(run, mesh, model)
    tensors = TensorStore(run.model, mesh)
    _load(run, mesh, engine, tensors, inputs, names)
    meter = metrics.meter_for(run)
    stragglers = None
    if run.loop.log_straggler:
        stragglers = Stragglers(mesh)
        engine.watch(stragglers.own_time)
    document_end = inputs.vocabulary.eod if run.data.inter_document_masking else None

    def source(samples: BlendedSamples, batch: BatchConfig) -> BatchSource:
        return BatchSource(samples, batch, mesh, document_end)

    return Loop(
        run=run,
        mesh=mesh,
        engine=engine,
        source=source(inputs.train, run.batch),
        valid=None if inputs.valid is None else source(inputs.valid, replace(run.batch, rampup_batch_size=None)),
        meter=meter,
        saver=Saver(run, partial(inputs.order, run), engine, tensors) if run.checkpoint.save else None,
        stragglers=stragglers,
        loggers=on_first_rank(lambda: _announced(run, mesh, inputs, engine, meter)) or (),
        state=inputs.state,
    )


def build_engine(run: RunConfig, mesh: Mesh, model: gpt.ModelChunks) -> ShardingEngine:
    """The engine that the JSON asks for: DeepSpeed's, or with an `fsdp` block torch's. The other is not imported."""
    if run.sharding.fsdp is not None:
        from tinyllama_mcore.engine.fsdp_engine import FsdpEngine

        return FsdpEngine(run, mesh, model)
    from tinyllama_mcore.engine import deepspeed_engine, zero1

    make = zero1.Zero1Engine if zero1.fits(run, mesh) else deepspeed_engine.DeepSpeedEngine
    return make(run, mesh, model)


def _load(
    run: RunConfig, mesh: Mesh, engine: ShardingEngine, tensors: TensorStore, inputs: Inputs, names: Sequence[str]
) -> None:
    """Give the engine its weights: the checkpoint's, else the initial ones, of which this rank holds those `names`."""
    if inputs.checkpoint is None:
        with drawn_ahead(run.model, run.seed, names, threads=launch.threads_of_a_rank()) as value:
            engine.load_state(initial_shards(run.model, mesh.tensor, run.seed, value), 0)
    else:
        reader.load(inputs.checkpoint, engine, tensors)


def _announced(
    run: RunConfig, mesh: Mesh, inputs: Inputs, engine: ShardingEngine, meter: metrics.Meter
) -> tuple[loggers.Logger, ...]:
    """Announce the run and open what its first rank writes. ConfigError where that cannot be written."""
    print(*_announcement(run, mesh, inputs, engine), sep="\n", flush=True)
    outputs.record(run)
    start = started.fields(run, inputs.checkpoint)
    return loggers.loggers_for(run, meter, start_iteration=inputs.state.iteration, start=start)


def _announcement(run: RunConfig, mesh: Mesh, inputs: Inputs, engine: ShardingEngine) -> Iterator[str]:
    """What is printed once, before the first iteration."""
    epochs = inputs.train.epochs(inputs.samples_in_all(run))
    yield from describe.lines(run, parameters=count_parameters(run.model), dataset_epochs=epochs)
    if inputs.train.history.start:
        yield f"blend        {inputs.train.told()}"
    yield f"engine       {engine.describe()}"
    yield from (f"note         {told}" for told in started.untried(started.environment()))
    if mesh.device.type == "cuda":
        yield f"kernels      {flash.told(run)}"
        if run.transformer_impl == "fused":
            yield f"kernels      {swiglu_backend(run, mesh.device)}"
            if mesh.tensor.size > 1:
                yield f"kernels      {exchange.description(run, mesh.device)}"
    age = launch.process_age()
    yield f"weights      verified after loading in {engine.check_seconds:.3f} s; {age:.1f} s since the process started"
    if inputs.checkpoint is not None:
        folder, manifest = inputs.checkpoint
        yield f"resuming     from {folder}, iteration {manifest.state.iteration:,}"
        yield from changed_recipe.lines(manifest, run)
