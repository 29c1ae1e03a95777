"""Which checkpoint a run resumes from: the newest undamaged one, or only the one that was asked for.

Why: a damaged newest checkpoint must neither be loaded nor end a run that has another. Before the process group exists
each rank looks at manifests and sizes, which is quick; once it exists, all ranks read every byte, each its share, and
decide on what all of them found. Neighbours: `layout` lists the directories, `reader` verifies and loads.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import layout, reader
from tinyllama_mcore.checkpoint import manifest as manifests
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Damaged, Manifest
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.parallel.first_rank import on_first_rank

Look = tuple[Manifest | None, list[str]]
"""What a look at a directory gives: its manifest, if it can be read, and what is wrong, in words."""


def newest_by_size(directory: Path, iteration: int | None = None, *, or_since: bool = False) -> Checkpoint:
    """The newest checkpoint with a sound manifest and files of the right size, or `iteration`'s. Not collective.

    With `or_since`, before that one those that a run which went back to it has saved since: it was started again.

    Raises:
        ConfigError: there is none, or the one that was asked for is damaged, or it is of another version's format.
    """
    return _first_whole(
        _candidates(directory, iteration, or_since=or_since), lambda folder: _look(folder, contents=False)
    )


def agree(
    directory: Path, iteration: int | None = None, *, latest: int | None = None, or_since: bool = False
) -> Checkpoint:
    """The newest checkpoint that is whole to the last byte, or `iteration`'s. Collective: every rank returns the same.

    With `latest`, the newest of those up to that iteration; `or_since` as for `newest_by_size`.

    Rank 0 names each damaged one that is skipped on stderr.

    Raises:
        ConfigError: on every rank alike, where none is whole or the one that was asked for is not.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def look(folder: Path) -> Look:
        """What all ranks say. Nothing is raised here: the others would wait for ever."""
        mine: Look
        try:
            mine = _look(folder, part=rank, parts=ranks)
        except ConfigError as refusal:
            mine = None, [str(refusal)]
        said = [mine] * ranks
        torch.distributed.all_gather_object(said, mine)
        problems = [problem for _, part in said for problem in part]
        if not problems and any(found != said[0][0] for found, _ in said):
            problems = [f"{folder / MANIFEST} is not the same on every machine"]
        return said[0][0], list(dict.fromkeys(problems))

    def tell(folder: Path, problems: list[str]) -> None:
        if rank == 0:
            print(f"warning: {reader.sentence(folder, problems)}: skipped", file=sys.stderr, flush=True)

    listed: list[tuple[list[Path], str]] = [([], "")]
    if rank == 0:  # one rank's listing is everybody's: a shared file system may show others an older one
        try:
            listed = [(_candidates(directory, iteration, latest, or_since=or_since), "")]
        except (ConfigError, OSError) as problem:
            listed = [([], str(problem))]
    torch.distributed.broadcast_object_list(listed, src=0)
    folders, why_none = listed[0]
    if not folders:
        raise ConfigError(why_none)
    return _first_whole(folders, look, tell)


def inspect(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, in words; every byte of it is read. Another format is wrong too. One process."""
    try:
        return _look(folder)[1]
    except ConfigError as refusal:
        return [str(refusal)]


def abandon_newer(directory: Path, iteration: int) -> list[Path]:
    """Rename the checkpoints after `iteration`, from which a run that saves here resumes or to which it rolls back.

    Otherwise pruning would keep them in place of the run's own, and the next start would resume from them. The tracker
    is put right before: whenever the run ends, it names a checkpoint that is there, or is not there itself; another
    program's is renamed. Collective; the first rank renames, and returns the new names.

    Raises:
        RunFailed: on every rank alike, where one cannot be renamed.
    """
    return on_first_rank(lambda: _set_newer_aside(directory, iteration), RunFailed) or []


def _set_newer_aside(directory: Path, iteration: int) -> list[Path]:
    """RunFailed where one cannot be renamed."""
    try:
        layout.settle(directory)
        there = layout.iterations(directory)
        tracker = layout.point(directory, max((each for each in there if each <= iteration), default=None))
        moved = [layout.set_aside(layout.folder(directory, newer)) for newer in there if newer > iteration]
    except OSError as error:
        raise RunFailed(
            f"checkpoints in {directory} that are newer than this run cannot be renamed: {error}"
        ) from error
    return [*moved, *([tracker] if tracker else [])]


def _candidates(
    directory: Path, iteration: int | None, latest: int | None = None, *, or_since: bool = False
) -> list[Path]:
    """What may be taken, best first. ConfigError where there is nothing."""
    if iteration is not None and or_since and (since := list(_since(directory, iteration))):
        at = layout.folder(directory, iteration)  # pruned, perhaps
        return [*reversed(since), *([at] if layout.is_ours(at) else [])]
    best = layout.find(directory, iteration)
    if iteration is not None:
        return [best]
    upto = [each for each in layout.iterations(directory) if latest is None or each <= latest]
    if not upto:
        raise ConfigError(f"{directory} holds no checkpoint of iteration {latest} or before")
    return [layout.folder(directory, each) for each in reversed(upto)]


def _since(directory: Path, iteration: int) -> Iterator[Path]:
    """The checkpoints after `iteration` of runs that went back to it within this directory, oldest first."""
    layout.settle(directory)
    for later in layout.iterations(directory):
        if later > iteration:
            folder = layout.folder(directory, later)
            with contextlib.suppress(Damaged, ConfigError, KeyError, TypeError):  # told where it would be taken
                kept = manifests.read(folder).run["checkpoint"]
                if kept["iteration"] == iteration and is_one(kept["load"], kept["save"]):
                    yield folder


def is_one(load: str | None, save: str | None) -> bool:
    """Whether a run resumes from the directory that it saves to."""
    return load is not None and save is not None and Path(load).resolve() == Path(save).resolve()


def _look(folder: Path, *, part: int = 0, parts: int = 1, contents: bool = True) -> Look:
    """See `reader.verify`; a manifest that is damaged is one more problem."""
    try:
        found = manifests.read(folder)
    except Damaged as damage:
        return None, [str(damage)]
    return found, reader.verify(folder, found, part=part, parts=parts, contents=contents)


def _first_whole(
    folders: Iterable[Path],
    look: Callable[[Path], Look],
    tell: Callable[[Path, list[str]], None] = lambda folder, problems: None,
) -> Checkpoint:
    """The first directory that `look` finds no problem with; `tell` is called for those before it."""
    damaged: list[tuple[Path, list[str]]] = []
    for folder in folders:
        found, problems = look(folder)
        if found is not None and not problems:
            for passed in damaged:
                tell(*passed)
            return Checkpoint(folder, found)
        damaged.append((folder, problems))
    raise Damaged("; ".join(reader.sentence(folder, problems) for folder, problems in damaged))
