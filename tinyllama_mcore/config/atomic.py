"""A file that is whole or as it was before: written beside its place, then renamed.

Neighbours: receipts, shards, the checkpoint's pointer and the note of a run's outputs are written by this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str, *, before_rename: Callable[[Path], None] | None = None) -> None:
    """Put `text` in the file at `path`, in UTF-8; a killed process leaves `PATH.partial` at most.

    Args:
        path: in a directory that is there.
        text: the whole content.
        before_rename: called with the file beside, e.g. to flush it to the disk.
    """
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    if before_rename is not None:
        before_rename(beside)
    beside.replace(path)
