"""Save: written beside, counted, and made visible by one rename, so that a checkpoint is whole or is not there.

Two moments, in this order. *Committed*: every byte is in the page cache, the manifest has its checksums, and the
directory has its name; a process that is killed from now on loses nothing. *Flushed*: all of it is on the disk, and a
power cut loses nothing either; only then are older checkpoints removed. A power cut between the two may damage the
newest one: its checksums show that, and the one before it is taken.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp

from tinyllama_mcore.checkpoint import layout, store
from tinyllama_mcore.checkpoint.manifest import Manifest, to_text
from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.paths import MANIFEST, TRACKER

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were. The message says why."""


def commit(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    manifest: Manifest,
    group: torch.distributed.ProcessGroup,
) -> list[str]:
    """Write one checkpoint and make it visible. Collective over `group`, of all ranks; its first rank publishes.

    Args:
        directory: where checkpoints of this run go.
        tensors: this rank's pieces, from `TensorStore.collect`; needed no longer once this returns.
        manifest: all but the files.
        group: over gloo, and nobody else's while this lasts.

    Returns:
        Names of the files that this rank wrote, for `flush`.

    Raises:
        SaveFailed: on every rank alike, e.g. where a disk is full; nothing of the checkpoint is left then.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    rank = torch.distributed.get_rank(group)

    def begin() -> bool:
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        return final.exists()

    def publish() -> None:
        if rank == 0:
            files = {name: record for part in records for name, record in part.items()}
            _publish(beside, final, dataclasses.replace(manifest, files=files))

    replaces = _together(begin, beside, group)[0]
    records = _together(lambda: store.write(beside, tensors, group), beside, group)
    mine = list(records[rank])
    if replaces:  # the one that stands there is on the disk: what takes its place has to be too
        _together(lambda: store.flush([beside / name for name in mine]), beside, group)
    _together(publish, beside, group)
    return mine


def flush(
    directory: Path,
    iteration: int,
    mine: list[str],
    group: torch.distributed.ProcessGroup,
    *,
    keep_latest: int = 0,
    hurry: threading.Event | None = None,
) -> None:
    """Put a committed checkpoint on the disk, point to it, and prune older ones. Collective over `group`.

    Args:
        directory: where checkpoints of this run go.
        iteration: whose checkpoint.
        mine: what `commit` returned on this rank.
        group: as `commit`'s.
        keep_latest: newest checkpoints to keep; 0 keeps all.
        hurry: once it is set, on any rank, the rest is left to the kernel and nothing is pruned.

    Raises:
        SaveFailed: on every rank alike; the checkpoint is removed then.
    """
    folder = layout.folder(directory, iteration)

    def conclude() -> None:
        if torch.distributed.get_rank(group) == 0:
            _conclude(folder)
            _prune(directory, keep_latest)

    def flush_mine() -> bool:
        for path in (folder / name for name in mine):
            if hurry is not None and hurry.is_set():
                return False
            store.flush([path])
        return True

    if all(_together(flush_mine, folder, group)):
        _together(conclude, folder, group)


def _together(stage: Callable[[], T], folder: Path, group: torch.distributed.ProcessGroup) -> list[T]:
    """Do one stage of a save on all ranks, and give what it returned on each.

    Raises:
        SaveFailed: on all, where one failed; `folder` is removed, as what it holds may be what fills the disk.
    """
    done: T | None = None
    problem = None
    try:
        done = stage()
    except (OSError, dcp.api.CheckpointException) as error:
        problem = _in_words(error)
    all_done: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(all_done, (problem, done), group=group)
    if problems := sorted({problem for problem, _ in all_done if problem}):
        if torch.distributed.get_rank(group) == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise SaveFailed(f"{folder.with_suffix('')} could not be written: {'; '.join(problems)}")
    return [done for _, done in all_done]


def _in_words(error: OSError | dcp.api.CheckpointException) -> str:
    """What a disk said; torch's exception has what each rank failed on."""
    if isinstance(error, OSError):
        return str(error)
    return "; ".join(sorted({str(failure) for failure, _ in error.failures.values()}))


def save_alone(directory: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> Path:
    """Write one checkpoint from one process with no process group: whole tensors, e.g. imported ones. Flushed.

    Raises:
        SaveFailed: nothing of the checkpoint is left then.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        files = store.write(beside, tensors, None)
        store.flush([beside / name for name in files])
        _publish(beside, final, dataclasses.replace(manifest, files=files))
        _conclude(final)
    except (OSError, dcp.api.CheckpointException) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise SaveFailed(f"{final} could not be written: {_in_words(error)}") from error
    return final


def _publish(beside: Path, final: Path, manifest: Manifest) -> None:
    """Count, manifest, rename: committed from here on."""
    _refuse_loss(beside, manifest)
    (beside / MANIFEST).write_text(to_text(manifest))
    if final.exists():  # the same iteration again: the older one is out of the way before, and gone after, the rename
        store.flush([beside / MANIFEST, beside])
        stale = final.with_suffix(".replaced")
        shutil.rmtree(stale, ignore_errors=True)
        final.rename(stale)
        beside.rename(final)
        shutil.rmtree(stale)
    else:
        beside.rename(final)


def _conclude(final: Path) -> None:
    """What is left to put on the disk once the files are: manifest and directories, then the tracker."""
    store.flush([final / MANIFEST, final])
    store.flush([final.parent])
    iteration = int(final.name.removeprefix("iter_"))
    atomic.write_text(final.parent / TRACKER, f"{iteration}\n", before_rename=lambda beside: store.flush([beside]))
    store.flush([final.parent])


def _refuse_loss(folder: Path, manifest: Manifest) -> None:
    """An error of ours, not the user's: parameters that no rank wrote, or that overlap, must never be published."""
    for kind in manifest.kinds:
        written = store.elements(folder, kind)
        if written != manifest.parameters:
            raise RuntimeError(
                f"{folder} holds {written:,} elements of {kind} where the model has {manifest.parameters:,} parameters"
            )


def _prune(directory: Path, keep_latest: int) -> None:
    """Remove what is superseded: finished checkpoints but the newest `keep_latest`, and what a killed save left."""
    for folder in layout.unfinished(directory):
        shutil.rmtree(folder)
    if keep_latest > 0:
        for iteration in layout.iterations(directory)[:-keep_latest]:
            folder = layout.folder(directory, iteration)
            going = folder.with_suffix(".removed")
            folder.rename(going)  # never visible half removed
            shutil.rmtree(going)
