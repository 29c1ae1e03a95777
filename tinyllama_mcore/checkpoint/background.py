"""Checkpoints written by a thread of each rank, at most one at a time.

A run waits for a save until it is committed, or trains on at once (`--async-save`); it never waits for the flush, but
for that of the save before (`writer` says what the two are). The threads talk over a gloo group of their own, so that
nothing they send meets what training sends. A save that fails fails on every rank, and is reported at the next call.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch

from tinyllama_mcore.checkpoint import writer
from tinyllama_mcore.checkpoint.manifest import Manifest

SLOWEST = timedelta(hours=2)
"""How long ranks wait for the slowest disk among them."""


class BackgroundWriter:
    """Writes one checkpoint at a time, beside training."""

    def __init__(self, directory: Path, keep_latest: int) -> None:
        """Collective: makes the group of the writing threads."""
        self._directory, self._keep_latest = directory, keep_latest
        self._group = torch.distributed.new_group(backend="gloo", timeout=SLOWEST)
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._is_committed = False
        self._hurry = threading.Event()
        self.failure: str | None = None
        """What the last save failed on, in words."""

    def start(self, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
        """Begin to write, once `finish` was called for the save before; `tensors` must not change before the next."""
        assert self._thread is None
        self._written.clear()
        self._hurry.clear()
        self._is_committed = False
        handed = [tensors]  # only the thread holds them, and no longer than it writes
        self._thread = threading.Thread(target=self._write, args=(handed, manifest), name="checkpoint", daemon=True)
        self._thread.start()

    def commit(self) -> None:
        """Wait until what was begun is committed.

        Raises:
            writer.SaveFailed: it was not. A flush that fails is reported later: ranks learn of it at different moments.
        """
        self._written.wait()
        if not self._is_committed:
            self._tell_failure()

    def hurry(self) -> None:
        """Leave the rest of a flush to the kernel: another save has to be committed soon."""
        self._hurry.set()

    def finish(self) -> None:
        """Wait until what was begun is flushed.

        Raises:
            writer.SaveFailed: it failed, or one before it did.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._tell_failure()

    def settle(self, patience_s: float) -> bool:
        """Wait at most so long for what was begun to be committed: whether it is. Raises nothing."""
        self._written.wait(patience_s)
        return self._is_committed

    @property
    def is_under_way(self) -> bool:
        """Whether a save was begun that is neither committed nor failed."""
        return self._thread is not None and not self._written.is_set()

    def _tell_failure(self) -> None:
        if self.failure is not None:
            raise writer.SaveFailed(self.failure)

    def _write(self, handed: list[Mapping[str, torch.Tensor]], manifest: Manifest) -> None:
        iteration = manifest.state.iteration
        try:
            mine = writer.commit(self._directory, handed.pop(), manifest, self._group)
            self._is_committed = True
            self._written.set()
            writer.flush(
                self._directory, manifest.state, mine, self._group, keep_latest=self._keep_latest, hurry=self._hurry
            )
        except writer.SaveFailed as error:
            self.failure = str(error)
        except BaseException as error:
            self.failure = f"checkpoint of iteration {iteration}: {type(error).__name__}: {error}"
        finally:
            self._written.set()
