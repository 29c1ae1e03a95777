"""One micro-batch, forward and backward, as a CUDA graph: recorded once, then replayed with one call.

Launching a thousand kernels from Python takes longer than a small micro-batch computes, and a large one still waits
for Python at the start of each iteration. A graph needs tensors at addresses that stay (ZeRO-1's flat buffers; the
layers add weight gradients to `main_grad`), one shape, and no NCCL inside the passes: a process whose graph holds a
kernel of NCCL's hangs at its end (torch 2.11).
Neighbours: `config.engines` says which runs have one; `schedule` runs micro-batches one operation at a time, for all
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.sampling.loader import TokenBatch


class MicroBatchGraph:
    """Replays the passes of a model that calls no NCCL and keeps its gradients in `main_grad`."""

    passing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around each micro-batch's passes (`parallel.own_time`)."""

    def __init__(self, model: ModelChunks) -> None:
        self._model, self._count = model, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """Every micro-batch forward and backward; returns this rank's mean loss, a scalar on the GPU.

        Gradients are those of the micro-batches' mean: where their number changes, the graph is recorded anew. The
        passes must have run once before as they are, so that every kernel is compiled.
        """
        losses = []
        if len(batches) != self._count:
            self._count, self._graph = len(batches), None
        for batch in batches:
            if self._graph is None:
                self._record(batch)
            self._tokens.copy_(batch.tokens.pin_memory(), non_blocking=True)
            self._labels.copy_(batch.labels.pin_memory(), non_blocking=True)
            assert self._graph is not None
            with self.passing():
                self._graph.replay()
            losses.append(self._loss.clone())
        return torch.stack(losses).mean()

    def _record(self, batch: TokenBatch) -> None:
        """Record the passes over a batch of this shape; computes nothing."""
        self._tokens, self._labels = batch.tokens.cuda(), batch.labels.cuda()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a graph has memory of its own: let go of what passes outside of it took
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's watchdog thread asks its events
            loss = self._model(0, self._tokens, labels=self._labels).mean()
            (loss / self._count).backward()
            self._loss = loss.detach()
        self._graph = graph
