"""Two GPUs of one host that send each other a matrix by their copy engines, while both go on computing.

A sum over two tensor-parallel ranks is one's own addend and the other's. NCCL's kernel needs multiprocessors, and a
matrix product that starts beside it has taken them all: measured on two H200s, the two together take as long as one
after the other. A copy over NVLink needs none, and takes less time (docs/evidence/speed-log.md).
Neighbours: `config.exchange` says when, `model.fused` computes beside the copies. By torch's symmetric memory.
"""

from __future__ import annotations

import math

import torch
from torch.distributed import _symmetric_memory

from tinyllama_mcore.config.exchange import obstacle
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.mesh import Mesh

_SLOTS = 2
"""Taken in turn. A rank writes into a slot again after the other has read it: the other has sent something since (see
`Transfer`), or met it (see `Exchange.begin_pass`)."""


def exchanges(run: RunConfig, device: torch.device) -> bool:
    """Whether the tensor-parallel ranks of a run exchange. With more than two, NCCL sends less."""
    return _obstacle(run, device) is None


def _obstacle(run: RunConfig, device: torch.device) -> str | None:
    return obstacle(run, lambda: device.type == "cuda" and launch.sees_peer())


def description(run: RunConfig, device: torch.device) -> str:
    """How tensor-parallel ranks add up and why, for the start-up print."""
    reason = _obstacle(run, device)
    if reason is None:
        return "sums of the two tensor-parallel GPUs by copies beside products"
    return f"sums of tensor-parallel GPUs by NCCL: an exchange by copies {reason}"


class Exchange:
    """The slots that two ranks write into, each the other's. Both have to call the same methods in the same order."""

    def __init__(self, mesh: Mesh) -> None:
        """Nothing is allocated before the first transfer."""
        self._mesh, self._count = mesh, 0
        self._stream = torch.cuda.Stream(mesh.device, priority=-1)
        self._memories: list[torch.Tensor] = []
        self._slot = 0

    def begin_pass(self) -> None:
        """Meet the other rank on the GPU: what either has received is used then.

        A pass that is replayed as a graph begins with the same slot each time, which may be the last one of the pass
        before.
        """
        if self._memories:
            other = 1 - self._mesh.tensor.rank
            self._handle.put_signal(other, channel=_SLOTS)
            self._handle.wait_signal(other, channel=_SLOTS)

    def begin(self, own: torch.Tensor) -> Transfer:
        """Begin to swap a matrix, of which `own` may not be computed yet.

        One transfer at a time: `received` has to be called, and its result used, before the next one begins.
        """
        self._reserve(own.numel() * own.element_size())
        self._count += 1
        return Transfer(self, own, self._count % _SLOTS)

    def _reserve(self, size: int) -> None:
        """Slots of at least `size` bytes; collective where they have to grow.

        The smaller ones before stay: a recorded graph goes on using them.
        """
        if self._slot >= size:
            return
        self._slot = math.ceil(size / 2**20) * 2**20
        try:
            memory = _symmetric_memory.empty(_SLOTS * self._slot, dtype=torch.uint8, device=self._mesh.device)
            self._handle = _symmetric_memory.rendezvous(memory, self._mesh.tensor.group)
        except RuntimeError as error:
            error.add_note("two tensor-parallel GPUs could not share memory: --no-tp-comm-overlap does without")
            raise
        self._memories.append(memory)

    def _of(self, rank: int, slot: int, like: torch.Tensor) -> torch.Tensor:
        """A slot in a rank's memory, as a matrix."""
        offset = slot * self._slot // like.element_size()
        return self._handle.get_buffer(rank, tuple(like.shape), like.dtype, offset)


class Transfer:
    """A matrix on its way, and the other rank's on its way here.

    Where it begins, this rank has used what it received in the transfer before; it says so to the other by sending.
    """

    def __init__(self, exchange: Exchange, own: torch.Tensor, slot: int) -> None:
        self._exchange, self._own, self._slot = exchange, own, slot
        self._rank = exchange._mesh.tensor.rank
        self._there = exchange._of(1 - self._rank, slot, own)

    def send(self, rows: slice, *, last: bool) -> None:
        """Send rows that the current stream has computed, in the background."""
        stream = self._exchange._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._there[rows].copy_(self._own[rows], non_blocking=True)
            if last:
                self._exchange._handle.put_signal(1 - self._rank, channel=self._slot)

    def received(self) -> torch.Tensor:
        """The other rank's matrix: the current stream waits for it, and until its own has been sent."""
        torch.cuda.current_stream().wait_stream(self._exchange._stream)
        self._exchange._handle.wait_signal(1 - self._rank, channel=self._slot)
        return self._exchange._of(self._rank, self._slot, self._own)
