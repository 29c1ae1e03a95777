"""Where checkpoints lie in a directory, and which of them can be trusted.

    SAVE/iter_0000100/manifest.json                      written last: a directory without it was never finished
    SAVE/iter_0000100/shard-00001-....safetensors        one file a rank that had something to write
    SAVE/latest_checkpointed_iteration.txt               Megatron's tracker: a hint for people, never trusted

Neighbours: `manifest` is what the file says, `store` moves tensors, `writer` and `reader` are the doors.
"""

from __future__ import annotations

from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import ITERATION, ITERATION_NAME, MANIFEST, finished_iterations


def folder(directory: Path, iteration: int) -> Path:
    """Directory of one iteration's checkpoint."""
    return directory / ITERATION.format(iteration)


def iterations(directory: Path) -> list[int]:
    """Iterations with a finished checkpoint, oldest first, by number rather than by name."""
    return finished_iterations(directory)


def unfinished(directory: Path) -> list[Path]:
    """Checkpoint directories that a killed save left behind, the temporary ones included."""
    if not directory.is_dir():
        return []
    children = sorted(child for child in directory.iterdir() if child.name.startswith("iter_") and child.is_dir())
    return [child for child in children if not (ITERATION_NAME.fullmatch(child.name) and (child / MANIFEST).is_file())]


def find(directory: Path, iteration: int | None = None) -> Path:
    """Directory of the newest finished checkpoint, or of `iteration`. ConfigError where there is none."""
    finished = iterations(directory)
    if iteration is not None and iteration not in finished:
        there = ", ".join(map(str, finished[-5:])) or "none"
        raise ConfigError(f"{directory} holds no finished checkpoint of iteration {iteration}; finished ones: {there}")
    if not finished:
        left = unfinished(directory)
        why = f"; {left[-1].name} was never finished (no {MANIFEST})" if left else ""
        raise ConfigError(f"{directory} holds no finished checkpoint{why}")
    return folder(directory, finished[-1] if iteration is None else iteration)
