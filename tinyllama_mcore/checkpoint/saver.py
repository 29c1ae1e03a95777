"""The checkpoints of a run: saved now or in the background, and loaded again where the run rolls back.

Neighbours: `training.loop` says when, `store` collects what each rank holds, `background` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import probe, reader, selection
from tinyllama_mcore.checkpoint.background import BackgroundWriter
from tinyllama_mcore.checkpoint.manifest import Manifest, Provenance, RunState
from tinyllama_mcore.checkpoint.store import TensorStore
from tinyllama_mcore.config import records
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine.base import ShardingEngine
from tinyllama_mcore.engine.protocol import STATE_KINDS
from tinyllama_mcore.sampling.sample_order import SampleOrder

PACKAGES = ("torch", "megatron-core", "deepspeed")
"""Packages whose versions a checkpoint records."""


class Saver:
    """Writes and rereads checkpoints in `--save`. Every method but `last_words` is collective."""

    def __init__(
        self, run: RunConfig, order: Callable[[int], SampleOrder], engine: ShardingEngine, tensors: TensorStore
    ) -> None:
        """Keeps host memory for the copies where the run trains on while they are written.

        `order` is that of the run's samples, by how many are consumed.
        """
        assert run.checkpoint.save is not None
        self._run, self._order, self._engine, self._tensors = run, order, engine, tensors
        self.directory = Path(run.checkpoint.save)
        """Where checkpoints go."""
        self._writer = BackgroundWriter(self.directory, run.checkpoint.keep_latest)
        if run.checkpoint.async_save:
            tensors.reserve(STATE_KINDS)

    @property
    def failure(self) -> str | None:
        """What a save in the background failed on, on this rank; None where nothing failed."""
        return self._writer.failure

    def save(self, state: RunState) -> None:
        """Write a checkpoint of `state`, or begin to where the run saves in the background; at most one is under way.

        Raises:
            SaveFailed: on every rank, where any could not write.
        """
        manifest = Manifest(
            state=state,
            run=records.to_plain(self._run),
            provenance=Provenance(
                order=self._order(state.consumed_samples), versions={name: version(name) for name in PACKAGES}
            ),
            parameters=count_parameters(self._run.model),
            kinds=STATE_KINDS,
        )
        self._writer.finish()
        pieces: dict[str, torch.Tensor] = dict(self._tensors.collect(self._engine, STATE_KINDS))
        pieces |= probe.take(self._engine, self._run, keeps=torch.distributed.get_rank() == 0)
        self._writer.start(pieces, manifest)
        if not self._run.checkpoint.async_save:
            self._writer.commit()

    def hurry(self) -> None:
        """The run was asked to leave: a save under way must not hold up the last one."""
        self._writer.hurry()

    def finish(self) -> None:
        """Wait for the save under way. SaveFailed on every rank, where any could not write."""
        self._writer.finish()

    def last_words(self, patience_s: float) -> Iterator[str]:
        """The run fails here, on this rank at least: wait so long for a save under way, and say what becomes of it.

        Other ranks write on by threads of their own, whether they train or wait. Not collective; nothing is raised.
        """
        if not self._writer.is_under_way:
            return
        yield f"a checkpoint is being written: waiting for it, {patience_s:g} s at most"
        if self._writer.settle(patience_s):
            yield "that checkpoint is written: the same command resumes from it"
        else:
            why = self._writer.failure or f"it took longer than {patience_s:g} s"
            yield f"that checkpoint is lost ({why}); those before it are as they were"

    def roll_back(self, latest: int) -> RunState:
        """Load the newest whole checkpoint of an iteration up to `latest`; newer ones are set aside.

        Raises:
            ConfigError: on every rank alike, where there is none.
            RunFailed: on every rank alike, where a newer one cannot be set aside.
        """
        self._writer.finish()
        found = selection.agree(self.directory, latest=latest)
        reader.load(found, self._engine, self._tensors)
        selection.abandon_newer(self.directory, found.manifest.state.iteration)
        return found.manifest.state
