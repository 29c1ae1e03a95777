"""The composition root: opens what a run reads, builds its parts in order, and starts the loop. Read this file first.

    RunConfig -> data and checkpoint -> process group -> mesh -> model -> engine -> weights -> loop

Everything that can be refused is refused before the process group exists. `pretrain` is the command line around it; a
program of your own calls `train`, or `opened` for more than training (docs/howto/python.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import changed_recipe, reader, resume
from tinyllama_mcore.checkpoint.manifest import RunState
from tinyllama_mcore.checkpoint.resume import Inputs
from tinyllama_mcore.checkpoint.saver import Saver
from tinyllama_mcore.checkpoint.store import TensorStore
from tinyllama_mcore.config import describe, paths
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import BatchConfig, RunConfig
from tinyllama_mcore.engine.protocol import ShardingEngine
from tinyllama_mcore.model import gpt
from tinyllama_mcore.model.initialize import initial_shards
from tinyllama_mcore.model.products import swiglu_backend
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel import mesh as meshes
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.blend import BlendedSamples
from tinyllama_mcore.sampling.loader import BatchSource
from tinyllama_mcore.training import loggers, loop, metrics, outputs, started


def train(run: RunConfig) -> RunState:
    """Train a run to its end, or until it is asked to leave. Every process of the job calls this.

    Returns:
        How far the run has come.

    Raises:
        ConfigError: the run cannot be what was asked for; on every rank alike, before anything is trained.
        RunFailed: no checkpoint could be written, or too many updates in a row had to be skipped.
    """
    with opened(run) as trainer:
        return trainer.train()


@contextmanager
def opened(run: RunConfig) -> Iterator[Trainer]:
    """A run inside its job, which is joined here and left at the end. Raises what `train` does. Collective."""
    place = launch.read()
    if run.layout.world_size != place.world_size:
        raise ConfigError(f"the layout is of {run.layout.world_size} processes, and this job has {place.world_size}")
    legality.check(run, has_gpu=launch.has_gpu, has_float8=launch.has_float8, is_hopper=launch.is_hopper)
    run, inputs = open_inputs(with_data(run))
    tensor_parallel = run.layout.tensor_model_parallel_size > 1
    launch.start_process_group(place, run.loop.distributed_timeout_minutes, tensor_parallel=tensor_parallel)
    trainer = Trainer(*resume.agree(run, inputs))
    try:
        yield trainer
    finally:
        trainer.close()
    launch.leave_process_group()


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
        self.state = RunState() if inputs.checkpoint is None else inputs.checkpoint[1].state
        """How far the run has come."""

    def train(self) -> RunState:
        """Train until the run is done or asked to leave; see `train`."""
        finished = changed_recipe.nothing_left(self.run, self._inputs.checkpoint)
        if finished is None:
            self.state = loop.train(self._parts, self.state)
        elif torch.distributed.get_rank() == 0:
            print(finished, flush=True)
        return self.state

    def evaluate(self) -> float:
        """Mean validation loss in nats a token over `loop.eval_iters` global batches.

        Raises:
            ConfigError: the run has no validation data.
        """
        valid = self._parts.valid
        if valid is None:
            raise ConfigError("the run has no validation data to evaluate on: loop.eval_interval must be above 0")
        return loop.evaluate(self._parts, valid).loss

    def save(self) -> Path:
        """Write a checkpoint to `checkpoint.save`; returns that directory.

        Raises:
            ConfigError: the run names none.
        """
        saver = self._parts.saver
        if saver is None:
            raise ConfigError("the run keeps no checkpoints: checkpoint.save must name a directory")
        saver.save(self.state)
        saver.finish()
        return saver.directory

    def close(self) -> None:
        """Close the files that the run writes."""
        if "_parts" in vars(self):
            for logger in self._parts.loggers:
                logger.close()

    @cached_property
    def _parts(self) -> loop.Parts:
        """Everything that the loop drives, with the weights loaded."""
        run, inputs = self.run, self._inputs
        mesh = meshes.build(run.layout, run.seed)
        engine = build_engine(run, mesh, gpt.build(run, mesh))
        tensors = TensorStore(run.model, mesh)
        _load(run, mesh, engine, tensors, inputs)
        if mesh.is_first:
            print(*_announcement(run, mesh, inputs, engine), sep="\n", flush=True)
            outputs.record(run)
        meter = metrics.meter_for(run)
        document_end = inputs.vocabulary.eod if run.data.inter_document_masking else None

        def source(samples: BlendedSamples, batch: BatchConfig) -> BatchSource:
            return BatchSource(samples, batch, mesh, document_end)

        return loop.Parts(
            run=run,
            mesh=mesh,
            engine=engine,
            train=source(inputs.train, run.batch),
            valid=None if inputs.valid is None else source(inputs.valid, replace(run.batch, rampup_batch_size=None)),
            meter=meter,
            loggers=loggers.loggers_for(
                run,
                meter,
                rank=mesh.rank,
                start_iteration=self.state.iteration,
                start=started.fields(run, inputs.checkpoint),
            ),
            saver=Saver(run, inputs.order(run), engine, tensors) if run.checkpoint.save else None,
        )


def build_engine(run: RunConfig, mesh: Mesh, model: gpt.ModelChunks) -> ShardingEngine:
    """The engine that the JSON asks for: DeepSpeed's, or with an `fsdp` block torch's. The other is not imported."""
    if run.sharding.fsdp is None:
        from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(run, mesh, model)
    from tinyllama_mcore.engine.fsdp_engine import FsdpEngine

    return FsdpEngine(run, mesh, model)


def _load(run: RunConfig, mesh: Mesh, engine: ShardingEngine, tensors: TensorStore, inputs: Inputs) -> None:
    """Give the engine its weights: the checkpoint's, else the initial ones."""
    if inputs.checkpoint is None:
        engine.load_state(initial_shards(run.model, mesh.tensor, run.seed, threads=launch.threads_of_a_rank()), 0)
    else:
        reader.load(*inputs.checkpoint, engine, tensors)


def _announcement(run: RunConfig, mesh: Mesh, inputs: Inputs, engine: ShardingEngine) -> Iterator[str]:
    """What is printed once, before the first iteration."""
    epochs = inputs.train.epochs(inputs.samples_in_all(run))
    yield from describe.lines(run, parameters=count_parameters(run.model), dataset_epochs=epochs)
    if inputs.train.history.start:
        yield f"blend        {inputs.train.told()}"
    yield f"engine       {engine.describe()}"
    if mesh.device.type == "cuda" and run.transformer_impl == "fused":
        yield f"kernels      {swiglu_backend(run, mesh.device)}"
    age = launch.process_age()
    yield f"weights      verified after loading in {engine.check_seconds:.3f} s; {age:.1f} s since the process started"
    if inputs.checkpoint is not None:
        folder, manifest = inputs.checkpoint
        yield f"resuming     from {folder}, iteration {manifest.state.iteration:,}"
        yield from changed_recipe.lines(manifest, run)
