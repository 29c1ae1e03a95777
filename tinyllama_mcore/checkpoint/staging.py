"""A GPU's tensors copied to ordinary host memory, fast enough for a launcher's grace.

Why: a plain copy to fresh memory goes at 1 to 3 GB/s, as one thread copies and the kernel clears each page first. Here
the GPU copies to a few page-locked buffers, and threads empty them. Where memory was reserved (`--async-save`), none of
it is needed. Neighbour: `store` copies every tensor of a checkpoint.
"""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor

import torch

BUFFERS = 8
"""Page-locked buffers, and threads that empty them."""
BUFFER_ELEMENTS = 8 << 20
"""Size of each buffer, in fp32: 32 MiB."""


class Staging:
    """Copies under way to host memory, fp32. Used as a context: at its end all of them are done."""

    def __init__(self, device: torch.device) -> None:
        """Buffers beside a GPU; nothing beside a CPU, whose tensors are copied at once."""
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        self._pending: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            self._pool = ThreadPoolExecutor(BUFFERS, thread_name_prefix="staging")
            for _ in range(BUFFERS):
                self._free.put(torch.empty(BUFFER_ELEMENTS, pin_memory=True))

    def __enter__(self) -> Staging:
        """Nothing is to be done."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the copies. Raises what one of them did."""
        if self._pool is not None:
            self._pool.shutdown()
        for copy in self._pending:
            copy.result()

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        """A tensor on the host that has the values of `source` at the end of the context.

        `source` may change once the stream that is current now has come past this call.
        """
        host = torch.empty(source.shape, dtype=torch.float32)
        if self._pool is None:
            return host.copy_(source)
        pieces = zip(source.reshape(-1).split(BUFFER_ELEMENTS), host.view(-1).split(BUFFER_ELEMENTS), strict=True)
        for piece, place in pieces:
            buffer = self._free.get()
            filled = buffer[: piece.numel()]
            filled.copy_(piece, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._pending.append(self._pool.submit(self._empty, buffer, filled, place, done))
        return host

    def _empty(self, buffer: torch.Tensor, filled: torch.Tensor, place: torch.Tensor, done: torch.cuda.Event) -> None:
        try:
            done.synchronize()
            place.copy_(filled)
        finally:
            self._free.put(buffer)
