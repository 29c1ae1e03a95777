"""Save: written beside, checked, and made visible by one rename, so that a checkpoint is whole or is not there."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import layout, store
from tinyllama_mcore.checkpoint.manifest import FileRecord, Manifest, file_record, to_text


def save(directory: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest, *, keep_latest: int = 0) -> Path:
    """Write one checkpoint and prune older ones. Collective over all ranks; rank 0 publishes.

    Args:
        directory: where checkpoints of this run go.
        tensors: this rank's pieces, from `TensorStore.collect`.
        manifest: all but the files.
        keep_latest: newest checkpoints to keep; 0 keeps all.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    torch.distributed.barrier()
    store.write(beside, tensors)
    records: list[dict[str, FileRecord]] = [{} for _ in range(torch.distributed.get_world_size())]
    names = sorted(path.name for path in beside.iterdir())
    torch.distributed.all_gather_object(records, {n: file_record(beside / n) for n in names[rank :: len(records)]})
    if rank == 0:
        files = {name: record for part in records for name, record in part.items()}
        _publish(beside, final, dataclasses.replace(manifest, files=files))
        _prune(directory, keep_latest)
    torch.distributed.barrier()
    return final


def save_alone(directory: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> Path:
    """Write one checkpoint from one process with no process group: whole tensors, e.g. imported ones."""
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(".unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    store.write(beside, tensors, alone=True)
    files = {path.name: file_record(path) for path in sorted(beside.iterdir())}
    _publish(beside, final, dataclasses.replace(manifest, files=files))
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
