"""What a run finds on the disk before it starts: its data, its checkpoints, a place to write.

Nothing here opens a file: existence and permission are all that is asked. Neighbours: `rules` refuses by these answers,
`cli` takes --save as --load where it holds a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def holds_checkpoint(directory: str) -> bool:
    """Whether a run was saved in the directory: a pointer to its newest checkpoint, or one with its manifest."""
    root = Path(directory)
    return (root / "latest_checkpointed_iteration.txt").is_file() or any(root.glob("iter_*/manifest.json"))


def unfinished_checkpoints(directory: str) -> list[str]:
    """Names of the checkpoints in the directory that never got their manifest."""
    return sorted(path.name for path in Path(directory).glob("iter_*") if not (path / "manifest.json").is_file())


def missing_dataset(flag: str, prefixes: Iterable[str]) -> str | None:
    """What is wrong with the first prefix of a flag that lacks its .bin or its .idx; None where every file is there."""
    for prefix in prefixes:
        for file in (f"{prefix}.bin", f"{prefix}.idx"):
            if Path(file).is_file():
                continue
            if prefix.endswith((".bin", ".idx")):
                return f"{flag} takes a prefix without the suffix: {prefix[:-4]}, not {prefix}"
            return f"{flag} {prefix}: {file} is missing; a dataset is the two files {prefix}.bin and {prefix}.idx"
    return None


def is_writable(directory: str) -> bool:
    """Whether the directory, or the nearest one above it that exists, can be written in."""
    path = Path(directory).absolute()
    above = next(p for p in (path, *path.parents) if os.path.lexists(p))
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)
