"""Whether a run may write its outputs beside checkpoints (metrics, events, CSV files, a profile) where it would.

A run notes in its --save directory where it writes them, so that a scheduler may start it again, from zero too, before
it has a checkpoint. What another run wrote is refused unless --overwrite is given. Neighbours: `json_lines` and
`loggers` write, `run` asks before the process group exists.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tinyllama_mcore.checkpoint.manifest import Checkpoint
from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import holds_checkpoint, unwritable, unwritable_file
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.training.json_lines import beyond, open_metrics
from tinyllama_mcore.training.monitors import holds_rows_beyond, refuse_wandb

NOTE = "outputs.json"
"""In the --save directory: paths of the run's outputs, relative to it."""
EVENTS = "events.out.tfevents.*"
"""Files of TensorBoard."""


def refuse_taken(run: RunConfig, checkpoint: Checkpoint | None) -> None:
    """Refuse outputs that cannot be written, or that another run wrote. Nothing in them changes; any rank may ask.

    `checkpoint` is what the run resumes from; None: it starts from iteration 0.

    Raises:
        ConfigError: raised while every rank can still leave with the same exit code.
    """
    metrics, events, scalars = run.loop.metrics_file, run.loop.tensorboard_dir, run.loop.csv_dir
    begins = 0 if checkpoint is None else checkpoint.manifest.state.iteration
    if metrics is not None:
        _refuse("--metrics-file", metrics, unwritable_file(metrics), "name a file in a writable directory")
        continued = _was_named(checkpoint, "metrics_file", metrics)
        if _lines_beyond(metrics, begins) and not _may_write(run, checkpoint, metrics, continued=continued):
            raise ConfigError(_taken("--metrics-file", metrics, f"lines after iteration {begins}", "file"))
    if events is not None:
        _refuse("--tensorboard-dir", events, unwritable(events), "name a writable directory")
        if any(Path(events).glob(EVENTS)) and not _may_write(run, checkpoint, events, continued=True):
            raise ConfigError(_taken("--tensorboard-dir", events, "events", "directory"))
    if scalars is not None:
        continued = _was_named(checkpoint, "csv_dir", scalars)
        if holds_rows_beyond(scalars, begins) and not _may_write(run, checkpoint, scalars, continued=continued):
            raise ConfigError(_taken("csv_monitor:", scalars, f"rows after iteration {begins}", "job_name"))
    profile = run.loop.profile_dir
    if profile is not None:
        _refuse("--profile-dir", profile, unwritable(profile), "name a writable directory")
        if any(Path(profile).glob("*")) and not _may_write(run, checkpoint, profile, continued=True):
            raise ConfigError(_taken("--profile-dir", profile, "files", "directory"))
    if run.loop.wandb is not None:
        refuse_wandb()


def record(run: RunConfig) -> None:
    """Note the run's outputs in its --save directory, beside those of its earlier starts. One process.

    Raises:
        ConfigError: the note cannot be written.
    """
    if run.checkpoint.save is None:
        return
    loop = run.loop
    written = (loop.metrics_file, loop.tensorboard_dir, loop.csv_dir, loop.profile_dir)
    named = (path for path in written if path is not None)
    noted = _noted(run.checkpoint.save)
    paths = sorted(noted | {_seen_from(run.checkpoint.save, path) for path in named})
    if set(paths) != noted:
        note = Path(run.checkpoint.save) / NOTE
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(note, json.dumps({"outputs": paths}, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"--save {run.checkpoint.save}: {NOTE} cannot be written: {error.strerror}") from error


def _refuse(flag: str, path: str, problem: str | None, remedy: str) -> None:
    if problem is not None:
        raise ConfigError(f"{flag} {path} cannot be written: {problem}; {remedy}")


def _taken(flag: str, path: str, held: str, kind: str) -> str:
    return (
        f"{flag} {path} holds {held} that another run wrote, and this run would overwrite them: name a new {kind}, "
        "or give --overwrite"
    )


def _lines_beyond(metrics: str, iteration: int) -> bool:
    """Whether a metrics file holds whole lines that a run from `iteration` on would cut away."""
    if not Path(metrics).exists():
        return False
    with open_metrics(metrics, "r+b") as file:
        return beyond(file, iteration).has_lines


def _may_write(run: RunConfig, checkpoint: Checkpoint | None, path: str, *, continued: bool) -> bool:
    """Whether the run made what is at `path`, or was told that it may write over it.

    `continued` says whether a run that resumes in its own directory, without a note of the path, adds to it.
    """
    save = run.checkpoint.save
    if run.loop.overwrite:
        return True
    if save is None:
        return False
    noted = _seen_from(save, path) in _noted(save)
    if checkpoint is None:  # from zero beside a checkpoint (--no-load) is another run
        return noted and not holds_checkpoint(save)
    return noted or (continued and _same(checkpoint.folder.parent, save))


def _was_named(checkpoint: Checkpoint | None, field: str, path: str) -> bool:
    """Whether the checkpoint's run wrote there, by this field of its loop: it may not have noted its outputs."""
    before = None if checkpoint is None else getattr(checkpoint.manifest.config.loop, field)
    return before is not None and _same(before, path)


def _noted(save: str) -> set[str]:
    """What is noted in a --save directory; nothing where the note is missing or damaged."""
    try:
        return set(json.loads((Path(save) / NOTE).read_text())["outputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _seen_from(save: str, path: str) -> str:
    """The path relative to the --save directory, so that both may move together."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(save))


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
