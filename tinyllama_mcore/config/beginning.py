"""Where a run begins: at a checkpoint of its own, at another run's, or at iteration 0.

Its own come first: `--load` names where a run begins that holds no checkpoint in `--save` yet, so that the same
command, and the same program, resumes. Neighbours: `cli` needs the answer for the recipe, `tinyllama_mcore.run` asks
again for every run that starts, whoever made it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import CheckpointConfig
from tinyllama_mcore.config.paths import holds_checkpoint, unfinished_checkpoints
from tinyllama_mcore.config.schema import RunConfig


def begun(run: RunConfig) -> RunConfig:
    """The run with the checkpoint that it begins at, and a note where that is not plain. A second call adds nothing.

    Raises:
        ConfigError: two of its fields contradict each other, or one has no effect.
    """
    checkpoint, note = beginning(run.checkpoint)
    notes = (note,) if note and note not in run.notes else ()
    return replace(run, checkpoint=checkpoint, notes=(*run.notes, *notes))


def beginning(asked: CheckpointConfig) -> tuple[CheckpointConfig, str | None]:
    """`asked` with `load` as the directory to resume from, and a note where the run resumes or skips a checkpoint.

    Raises:
        ConfigError: two fields contradict each other, or one has no effect.
    """
    save, load = asked.save, asked.load
    if load is not None and asked.no_load:
        raise ConfigError(f"--load {load} and --no-load contradict each other; give one of them")
    if asked.no_load and save is None:
        raise ConfigError("--no-load does nothing here, because no --save names a checkpoint; leave it out")
    has_begun = save is not None and holds_checkpoint(save) and not asked.no_load
    if asked.iteration is not None and load is None and not has_begun:
        raise ConfigError(
            f"--iteration {asked.iteration} names a checkpoint, but the run resumes from none: give --load, or a "
            "--save that holds one, and leave --no-load out"
        )
    if save is None or asked.no_load:
        return asked, None
    if has_begun:
        return _resumed(asked, save)
    torn = unfinished_checkpoints(save) if load is None else []
    note = f"--save {save}: {', '.join(torn)} was never finished, and there is no other: starting from iteration 0"
    return asked, note if torn else None


def _resumed(asked: CheckpointConfig, save: str) -> tuple[CheckpointConfig, str | None]:
    """Where `--save` holds a checkpoint: the run resumes there. Another `--load` is where it once began."""
    if asked.load is None:
        return replace(asked, load=save), f"--save {save} holds a checkpoint: resuming from it"
    if Path(asked.load).resolve() == Path(save).resolve():
        return asked, None
    began = f"--load {asked.load}" + f" --iteration {asked.iteration}" * (asked.iteration is not None)
    note = (
        f"--save {save} holds a checkpoint: resuming from it, and not from {began}, which counts where --save is empty"
    )
    return replace(asked, load=save, iteration=None), note
