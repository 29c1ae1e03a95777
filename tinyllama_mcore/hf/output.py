"""A directory that is whole and checked, or is not there: built beside its place, renamed at the end.

Neighbours: `export` and `importing` fill one each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import unwritable


def refuse_taken(output: Path) -> None:
    """ConfigError where `output` is a file, or a directory with something in it, or nothing can be written there."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output} exists and is not empty: name a new directory, or remove it first")
    if problem := unwritable(output):
        raise ConfigError(f"--output {output} cannot be written: {problem}; name a writable directory")


@contextmanager
def built_beside(output: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `output` when the body ends; where the body fails, nothing is left.

    Raises:
        ConfigError: `output` is taken, or nothing can be written there.
    """
    refuse_taken(output)
    place = output.resolve()
    beside = place.with_name(f".{place.name}.unfinished")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror} ({error.filename})") from error
    try:
        yield beside
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
