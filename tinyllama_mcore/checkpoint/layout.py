"""Where checkpoints lie in a directory, which of them can be trusted, and which names in it are ours to remove.

    SAVE/iter_0000100/manifest.json                      written last: a directory without it was never finished
    SAVE/iter_0000100/shard-00001-....safetensors        one file a rank that had something to write
    SAVE/iter_0000100.unfinished                         being written
    SAVE/iter_0000100.replaced                           stood there before a save of the same iteration
    SAVE/iter_0000100.removed                            going
    SAVE/abandoned-iter_0000100                          in the way of this run, and never removed
    SAVE/latest_checkpointed_iteration.txt               Megatron's tracker: a hint for people, never trusted

A save that is killed leaves names with an ending. What has none of these names is somebody else's: a copy, a link, a
checkpoint of Megatron-LM. Neighbours: `manifest` is what the file says, `store` moves tensors, `writer` and `reader`
are the doors, `pruning` removes.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import CHECKPOINT, ITERATION, MANIFEST, TRACKER, finished_checkpoints

UNFINISHED, REPLACED, REMOVED = ".unfinished", ".replaced", ".removed"
"""Endings of a checkpoint's directory on its way in and out."""
ABANDONED = "abandoned-"
"""Prefix of what was in the way of a run: newer than the checkpoint that it starts from, or not of this program."""
_LEFT = re.compile(rf"({CHECKPOINT.pattern})(\.unfinished|\.replaced|\.removed(?:\.\d+)?)")


def folder(directory: Path, iteration: int) -> Path:
    """Directory of one iteration's checkpoint."""
    return directory / ITERATION.format(iteration)


def iterations(directory: Path) -> list[int]:
    """Iterations with a finished checkpoint, oldest first, by number rather than by name."""
    return finished_checkpoints(directory)


def is_ours(folder: Path) -> bool:
    """Whether this program wrote what has the name of a checkpoint: it has a manifest, and is no link."""
    return not folder.is_symlink() and (folder / MANIFEST).is_file()


def unfinished(directory: Path) -> list[Path]:
    """What saves and removals that were killed left behind and nobody needs any more."""
    return [child for child, bare, end in _left(directory) if end != REPLACED or is_ours(bare)]


def _left(directory: Path) -> Iterator[tuple[Path, Path, str]]:
    """Directories on their way in or out, each with the checkpoint that it belongs to, and its ending."""
    if directory.is_dir():
        for child in sorted(directory.iterdir()):
            match = _LEFT.fullmatch(child.name)
            if match and child.is_dir() and not child.is_symlink():
                yield child, directory / match[1], match[3]


def settle(directory: Path) -> None:
    """End what a killed save began when it replaced a checkpoint: what stood there stands there again.

    Without locks, as readers call it too: a rename that another process made first, or that is not allowed, is passed
    over.
    """
    for child, bare, end in _left(directory):
        if end == REPLACED:
            with contextlib.suppress(OSError):
                if is_ours(bare):
                    child.rename(free(bare, REMOVED))
                elif not exists(bare):
                    child.rename(bare)


def exists(path: Path) -> bool:
    """Whether something has this name, a link to nothing included."""
    return path.exists() or path.is_symlink()


def free(folder: Path, ending: str = "", prefix: str = "") -> Path:
    """A name that nothing has yet: the checkpoint's with a prefix or an ending, and a number where it needs one."""
    numbers = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    names = (folder.with_name(f"{prefix}{folder.name}{ending}{number}") for number in numbers)
    return next(name for name in names if not exists(name))


def set_aside(path: Path) -> Path:
    """Rename what is in the way; returns the new name, which nothing removes."""
    return path.rename(free(path, prefix=ABANDONED))


def point(directory: Path, iteration: int | None) -> Path | None:
    """Make a tracker that is there name this iteration; None: no checkpoint is left, and none is named.

    One that names a checkpoint of another program is renamed, as Megatron-LM reads it; returns its new name.
    """
    tracker = directory / TRACKER
    if not tracker.is_file():
        return None
    named = tracker.read_text(errors="replace").strip()
    its = folder(directory, int(named)) if re.fullmatch("[0-9]{1,18}", named) else directory / "release"
    if its.is_dir() and not (its / MANIFEST).is_file():
        return set_aside(tracker)
    if iteration is None:
        tracker.unlink()
    elif named != str(iteration):
        atomic.write_text(tracker, f"{iteration}\n")
    return None


def find(directory: Path, iteration: int | None = None) -> Path:
    """Directory of the newest finished checkpoint, or of `iteration`. ConfigError where there is none."""
    settle(directory)
    finished = iterations(directory)
    if not finished and (directory / MANIFEST).is_file() and CHECKPOINT.fullmatch(directory.absolute().name):
        number = int(directory.absolute().name.removeprefix("iter_"))
        raise ConfigError(f"{directory} is itself a checkpoint: give --load {directory.parent} --iteration {number}")
    if iteration is not None and iteration not in finished:
        there = ", ".join(map(str, finished[-5:])) or "none"
        newest = "the newest of them" if len(finished) > 5 else "finished ones"
        raise ConfigError(f"{directory} holds no finished checkpoint of iteration {iteration}; {newest}: {there}")
    if not finished:
        raise ConfigError(f"{directory} holds no finished checkpoint{_instead(directory)}")
    return folder(directory, finished[-1] if iteration is None else iteration)


def _instead(directory: Path) -> str:
    """What a directory without a finished checkpoint holds, in words."""
    if not directory.is_dir():
        return ""
    others = sorted(child.name for child in directory.iterdir() if CHECKPOINT.fullmatch(child.name))
    left = [child.name for child, _, _ in _left(directory)]
    if others:
        return f"; {others[-1]} has no {MANIFEST}: another program wrote it, or it is not whole"
    if left:
        return f"; {left[-1]} was never finished"
    return f"; its {TRACKER} points to none" if (directory / TRACKER).is_file() else ""
