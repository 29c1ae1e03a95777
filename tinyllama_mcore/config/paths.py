"""What a run finds on the disk before it starts: its data, its checkpoints, a place to write.

Nothing here reads a file: existence is asked, and writing is tried. Neighbours: `rules` refuses by these answers,
`cli` takes --save as --load where it holds a checkpoint.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

SAMPLE_CORPUS = Path("data/sample")
"""Where the built-in corpus is prepared, under the working directory."""
SAMPLE_VOCABULARY = 2048
"""Pieces of the built-in corpus's tokenizer where the recipe takes any number."""
LARGEST_SAMPLE_VOCABULARY = 32_000
"""Pieces at most: the corpus is too small for more, and a model with more rows has some that no data names."""

MANIFEST = "manifest.json"
"""In the directory of a checkpoint, written last: a directory without it was never finished."""
TRACKER = "latest_checkpointed_iteration.txt"
"""Beside those directories: Megatron's pointer to the newest."""
ITERATION = "iter_{:07d}"
"""Name of the directory of one iteration's checkpoint."""
CHECKPOINT = re.compile(r"iter_(\d{7,})")
"""All of those names, and no others: a copy has another name, and is nobody's checkpoint."""


def finished_checkpoints(directory: str | Path) -> list[int]:
    """Iterations of the checkpoints in the directory that have their manifest, oldest first."""
    root = Path(directory)
    if not root.is_dir():
        return []
    found = ((CHECKPOINT.fullmatch(child.name), child) for child in root.iterdir())
    return sorted(int(match[1]) for match, child in found if match and (child / MANIFEST).is_file())


def holds_checkpoint(directory: str) -> bool:
    """Whether a run was saved in the directory: a pointer to its newest checkpoint, or one with its manifest.

    One that a save of the same iteration was about to replace counts: it is found again when it is looked for.
    """
    root = Path(directory)
    replaced = (manifest.parent.name for manifest in root.glob(f"*.replaced/{MANIFEST}"))
    found = finished_checkpoints(root) or any(CHECKPOINT.fullmatch(name.removesuffix(".replaced")) for name in replaced)
    return bool(found) or (root / TRACKER).is_file()


def unfinished_checkpoints(directory: str) -> list[str]:
    """Names of the checkpoints in the directory that never got their manifest, or their place."""
    finished = {ITERATION.format(iteration) for iteration in finished_checkpoints(directory)}
    names = (path.name for path in Path(directory).glob("iter_*") if path.name not in finished)
    return sorted(name for name in names if CHECKPOINT.fullmatch(name.removesuffix(".unfinished")))


def missing_dataset(flag: str, prefixes: Iterable[str]) -> str | None:
    """What is wrong with the first prefix of a flag that lacks its .bin or its .idx; None where every file is there."""
    for prefix in prefixes:
        for file in (f"{prefix}.bin", f"{prefix}.idx"):
            if Path(file).is_file():
                continue
            if problem := suffixed(flag, prefix):
                return problem
            return f"{flag} {prefix}: {file} is missing; a dataset is the two files {prefix}.bin and {prefix}.idx"
    return None


def suffixed(flag: str, prefix: str) -> str | None:
    """What is wrong with a prefix that names one of its two files; None where it does not."""
    if prefix.endswith((".bin", ".idx")):
        return f"{flag} takes a prefix without the suffix: {prefix[:-4]}, not {prefix}"
    return None


def told_apart(paths: Iterable[str]) -> list[str]:
    """Short names of different paths: the last part of each, with as many before it as tell it from the others."""
    whole = [Path(path).parts or (path,) for path in paths]
    names = []
    for parts in whole:
        others = [other for other in whole if other is not parts]
        count = next((n for n in range(1, len(parts)) if all(parts[-n:] != o[-n:] for o in others)), len(parts))
        names.append(str(Path(*parts[-count:])))
    return names


_SCHEME = re.compile("[a-z][a-z0-9+.-]+:")
"""What `s3://bucket/name` begins with, as a part of a path."""


def unwritable(directory: str | Path) -> str | None:
    """Why nothing can be written in the directory, in the system's words; None where it can.

    It is tried: a file is made and removed in the directory, or in the nearest one above it that exists. Permissions
    say nothing to root, nor of a mount that is read-only or full. No directory is made. A URL is none, though it could
    be the name of one.
    """
    path = Path(directory).absolute()
    if any(_SCHEME.fullmatch(part) for part in path.parts):
        return "it is a URL, and what is written goes to a directory of this machine"
    try:
        above = next(p for p in (path, *path.parents) if _exists(p))
        with tempfile.NamedTemporaryFile(dir=above, prefix=".write-test-") as file:
            file.write(b"x")
            file.flush()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def unwritable_file(file: str | Path) -> str | None:
    """Why the file cannot be written, made or replaced; None where it can. Nothing in it changes."""
    path = Path(file)
    try:
        if path.is_dir():
            return os.strerror(errno.EISDIR)
        if path.exists():
            with path.open("r+b"):
                pass
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return unwritable(path.parent)


def _exists(path: Path) -> bool:
    """Whether something has this name; OSError where the name itself cannot be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
