"""Save: written beside, checked, and made visible by one rename, so that a checkpoint is whole or is not there."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp

from tinyllama_mcore.checkpoint import layout, store
from tinyllama_mcore.checkpoint.manifest import FileRecord, Manifest, file_record, to_text

T = TypeVar("T")


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; those before it are as they were. The message says why."""


def save(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    manifest: Manifest,
    group: torch.distributed.ProcessGroup,
    *,
    keep_latest: int = 0,
) -> None:
    """Write one checkpoint and prune older ones. Collective over `group`, of all ranks; its first rank publishes.

    Args:
        directory: where checkpoints of this run go.
        tensors: this rank's pieces, from `TensorStore.collect`.
        manifest: all but the files.
        group: over gloo, and nobody else's while this lasts.
        keep_latest: newest checkpoints to keep; 0 keeps all.

    Raises:
        SaveFailed: on every rank alike, e.g. where a disk is full; nothing of the checkpoint is left then.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)

    def digest() -> dict[str, FileRecord]:
        return {name: file_record(beside / name) for name in sorted(os.listdir(beside))[rank::ranks]}

    def publish() -> None:
        if rank == 0:
            files = {name: record for part in records for name, record in part.items()}
            _publish(beside, final, dataclasses.replace(manifest, files=files))
            _prune(directory, keep_latest)

    _together(begin, beside, group)
    _together(lambda: store.write(beside, tensors, group), beside, group)
    records = _together(digest, beside, group)
    _together(publish, beside, group)


def _together(stage: Callable[[], T], beside: Path, group: torch.distributed.ProcessGroup) -> list[T]:
    """Do one stage of a save on all ranks, and give what it returned on each; SaveFailed on all where one failed."""
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
            shutil.rmtree(beside, ignore_errors=True)  # what it holds may be what fills the disk
        raise SaveFailed(f"{beside.with_suffix('')} could not be written: {'; '.join(problems)}")
    return [done for _, done in all_done]


def _in_words(error: OSError | dcp.api.CheckpointException) -> str:
    """What a disk said; torch's exception has what each rank failed on."""
    if isinstance(error, OSError):
        return str(error)
    return "; ".join(sorted({str(failure) for failure, _ in error.failures.values()}))


def save_alone(directory: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> Path:
    """Write one checkpoint from one process with no process group: whole tensors, e.g. imported ones.

    Raises:
        SaveFailed: nothing of the checkpoint is left then.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        store.write(beside, tensors, None)
        files = {path.name: file_record(path) for path in sorted(beside.iterdir())}
        _publish(beside, final, dataclasses.replace(manifest, files=files))
    except (OSError, dcp.api.CheckpointException) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise SaveFailed(f"{final} could not be written: {_in_words(error)}") from error
    return final


def _publish(beside: Path, final: Path, manifest: Manifest) -> None:
    """Count, manifest, rename, tracker; each on the disk before the next."""
    _refuse_loss(beside, manifest)
    _write_synced(beside / layout.MANIFEST, to_text(manifest))
    _sync_folder(beside)
    if final.exists():  # the same iteration again: the older one is out of the way before, and gone after, the rename
        stale = final.with_suffix(".replaced")
        shutil.rmtree(stale, ignore_errors=True)
        final.rename(stale)
        beside.rename(final)
        shutil.rmtree(stale)
    else:
        beside.rename(final)
    _sync_folder(final.parent)
    tracker = final.parent / layout.TRACKER
    _write_synced(tracker.with_suffix(".tmp"), f"{manifest.state.iteration}\n")
    tracker.with_suffix(".tmp").rename(tracker)
    _sync_folder(final.parent)


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


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
