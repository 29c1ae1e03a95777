"""Save: written beside, counted, and made visible by one rename, so that a checkpoint is whole or is not there.

Two moments, in this order. *Committed*: every byte is in the page cache, the manifest has its checksums, and the
directory has its name; a process that is killed from now on loses nothing. *Flushed*: all of it is on the disk, and a
power cut loses nothing either; only then are older checkpoints removed. A power cut between the two may damage the
newest one: its checksums show that, and the one before it is taken. Neighbour: `pruning` removes and replaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp

from tinyllama_mcore.checkpoint import layout, pruning, store
from tinyllama_mcore.checkpoint.manifest import Manifest, RunState, to_text
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
    beside = final.with_suffix(layout.UNFINISHED)
    rank = torch.distributed.get_rank(group)

    def begin() -> bool:
        if rank == 0:
            layout.settle(directory)
            _discard(beside)
            beside.mkdir(parents=True)
        return layout.is_ours(final)

    def publish() -> None:
        if rank == 0:
            files = {name: record for part in records for name, record in part.items()}
            _publish(beside, final, dataclasses.replace(manifest, files=files))

    undo = functools.partial(_discard, beside)
    replaces = _together(begin, final, undo, group)[0]
    records = _together(lambda: store.write(beside, tensors, group), final, undo, group)
    mine = list(records[rank])
    if replaces:  # the one that stands there is on the disk: what takes its place has to be too
        _together(lambda: store.flush([beside / name for name in mine]), final, undo, group)
    _together(publish, final, undo, group)
    return mine


def flush(
    directory: Path,
    state: RunState,
    mine: list[str],
    group: torch.distributed.ProcessGroup,
    *,
    keep_latest: int = 0,
    hurry: threading.Event | None = None,
) -> None:
    """Put a committed checkpoint on the disk, point to it, and prune older ones. Collective over `group`.

    A streak of skipped updates keeps the checkpoint before it, which a rollback would take.

    Args:
        directory: where checkpoints of this run go.
        state: of which run.
        mine: what `commit` returned on this rank.
        group: as `commit`'s.
        keep_latest: newest checkpoints to keep; 0 keeps all.
        hurry: once it is set, on any rank, the rest is left to the kernel and nothing is pruned.

    Raises:
        SaveFailed: on every rank alike; the checkpoint is taken back then.
    """
    folder = layout.folder(directory, state.iteration)
    first = torch.distributed.get_rank(group) == 0

    def conclude() -> None:
        if first:
            _conclude(folder)

    def flush_mine() -> bool:
        for path in (folder / name for name in mine):
            if hurry is not None and hurry.is_set():
                return False
            store.flush([path])
        return True

    undo = functools.partial(pruning.take_back, folder)
    if all(_together(flush_mine, folder, undo, group)):
        _together(conclude, folder, undo, group)
        try:
            if first:  # past the last stage that may take the checkpoint back
                pruning.prune(directory, keep_latest, state.iteration - state.skipped_in_a_row)
        finally:  # the others wait here, where they may wait long
            torch.distributed.barrier(group=group)


def _together(
    stage: Callable[[], T], folder: Path, undo: Callable[[], None], group: torch.distributed.ProcessGroup
) -> list[T]:
    """Do one stage of a save on all ranks, and give what it returned on each.

    Raises:
        SaveFailed: on all, where one failed, whatever on; the first rank calls `undo`, as what was written of `folder`
            may be what fills the disk.
    """
    done: T | None = None
    problem, cause = None, None
    try:
        done = stage()
    except (Exception, dcp.api.CheckpointException) as error:  # of any kind: the others would wait for this rank
        problem, cause = _in_words(error), error
    all_done: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(all_done, (problem, done), group=group)
    if problems := sorted({problem for problem, _ in all_done if problem}):
        if torch.distributed.get_rank(group) == 0:
            undo()
        raise SaveFailed(f"{folder} could not be written: {'; '.join(problems)}") from cause
    return [done for _, done in all_done]


def _in_words(error: BaseException) -> str:
    """What a disk said; torch's exception has what each rank failed on."""
    if isinstance(error, OSError):
        return str(error)
    if isinstance(error, dcp.api.CheckpointException):
        return "; ".join(sorted({str(failure) for failure, _ in error.failures.values()}))
    return f"{type(error).__name__}: {error}"


def save_alone(directory: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> Path:
    """Write one checkpoint from one process with no process group: whole tensors, e.g. imported ones. Flushed.

    Raises:
        SaveFailed: nothing of the checkpoint is left then.
    """
    final = layout.folder(directory, manifest.state.iteration)
    beside = final.with_suffix(layout.UNFINISHED)
    layout.settle(directory)
    _discard(beside)
    undo = functools.partial(_discard, beside)
    try:
        beside.mkdir(parents=True)
        files = store.write(beside, tensors, None)
        store.flush([beside / name for name in files])
        _publish(beside, final, dataclasses.replace(manifest, files=files))
        undo = functools.partial(pruning.take_back, final)
        _conclude(final)
    except (OSError, dcp.api.CheckpointException) as error:
        undo()
        raise SaveFailed(f"{final} could not be written: {_in_words(error)}") from error
    _discard(final.with_suffix(layout.REPLACED))
    return final


def _discard(folder: Path) -> None:
    """Remove what nobody needs any more, if it is there; its name is free then, also where a file of it stays."""
    with contextlib.suppress(OSError):
        pruning.remove(folder)


def _publish(beside: Path, final: Path, manifest: Manifest) -> None:
    """Count, manifest, rename: committed from here on."""
    _refuse_loss(beside, manifest)
    (beside / MANIFEST).write_text(to_text(manifest))
    if layout.is_ours(final):  # what takes its place has to be on the disk first
        store.flush([beside / MANIFEST, beside])
    pruning.put_in_place(beside, final)


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
