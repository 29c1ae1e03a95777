"""Check a run, join its process group, train and leave: where the command line and Python programs both start.

The command line (`pretrain`) and a program of your own (docs/howto/python.md) come through here, so that both are
refused alike. `run` builds the parts; it is imported once the run is legal, so that refusals cost no import of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tinyllama_mcore.config.beginning import begun
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.launchers import this_process

if TYPE_CHECKING:
    from tinyllama_mcore.checkpoint.manifest import RunState
    from tinyllama_mcore.run import Trainer


def train(run: RunConfig) -> RunState:
    """Train a run to its end, or until it is asked to leave. Every process of the job calls this.

    A run whose `checkpoint.save` holds a checkpoint resumes from it, unless `checkpoint.no_load` is set.

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
    place = this_process()
    if run.layout.world_size != place.world_size:
        raise ConfigError(f"the layout is of {run.layout.world_size} processes, and this job has {place.world_size}")
    run = begun(run)
    legality.check(run, **launch.DEVICE)
    from tinyllama_mcore.run import in_job

    with in_job(run, place) as trainer:
        yield trainer
