"""Checkpoints written by a thread of each rank while the run trains on, at most one at a time.

The threads talk over a gloo group of their own, so that nothing they send meets what training sends. A save that fails
fails on every rank (`writer.save`), and is told at the next call. Neighbour: `writer` does the writing.
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
        self.failure: str | None = None
        """What the last save failed on, in words."""

    def start(self, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
        """Begin to write, once `finish` was called for the save before; `tensors` must not change before the next."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._write, args=(tensors, manifest), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the save that is under way.

        Raises:
            writer.SaveFailed: it failed, or one before it did.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failure is not None:
            raise writer.SaveFailed(self.failure)

    def _write(self, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
        try:
            writer.save(self._directory, tensors, manifest, self._group, keep_latest=self._keep_latest)
        except writer.SaveFailed as error:
            self.failure = str(error)
        except BaseException as error:
            self.failure = f"checkpoint of iteration {manifest.state.iteration}: {type(error).__name__}: {error}"
