"""Micro-batches of one data-parallel rank, in order, from any sample of the run on.

Which samples an iteration holds does not depend on the layout: rank and micro-batch only say who takes which of them
(the arithmetic of Megatron's pretraining sampler). Resuming is an offset, nothing is replayed. Neighbour: `blend`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import torch

from tinyllama_mcore.config.errors import ConfigError, RankFailed, RunFailed
from tinyllama_mcore.config.schema import BatchConfig
from tinyllama_mcore.parallel.first_rank import on_first_rank
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.blend import BlendedSamples

PREPARED_AHEAD = 64
"""Iterations whose sample indices are built at a time: a long run goes through a small corpus very often."""
SLOWEST = timedelta(hours=6)
"""How long ranks wait for the first one's indices: an epoch of a trillion tokens takes longer than any collective."""


class IndexFailed(RunFailed):
    """Indices of samples could not be built. Raised on every rank alike, between two iterations."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """One micro-batch, on the host."""

    tokens: torch.Tensor
    """int64 [b, s]."""
    labels: torch.Tensor
    """int64 [b, s]."""
    document_starts: torch.Tensor | None = None
    """int32 [documents + 1]: where documents begin in the b s tokens, row after row, and b s. None: not told apart."""


class BatchSource:
    """The micro-batches of this rank's iterations."""

    def __init__(self, samples: BlendedSamples, batch: BatchConfig, mesh: Mesh, document_end: int | None) -> None:
        """Batches of `samples`.

        Args:
            samples: of the run.
            batch: sizes of the micro and the global batch, the latter of each iteration.
            mesh: says which rank this is.
            document_end: id that ends a document, where batches say where documents begin; else None.

        Raises:
            ValueError: the micro-batches of all ranks do not make up the global batch.
        """
        self.samples = samples
        self._batch, self._data, self._document_end = batch, mesh.data, document_end
        self._sizes = batch.sizes
        self._row = batch.micro_batch_size * mesh.data.size
        for size in (batch.global_batch_size, *(batch.rampup_batch_size or ())[:2]):
            if size % self._row:
                raise ValueError(
                    f"micro-batches of {batch.micro_batch_size} on {mesh.data.size} ranks do not make up a global "
                    f"batch of {size}"
                )

    def iterations(
        self,
        first_sample: int,
        count: int,
        while_building: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Generator[list[TokenBatch], None, None]:
        """The micro-batches of each of `count` iterations from `first_sample` on. Collective where indices are built.

        An iteration is fetched by a thread while the one before it trains. `while_building` is entered while ranks wait
        for indices.

        Raises:
            IndexFailed: indices could not be built, e.g. where the disk of the cache is full.
            RankFailed: a sample of this rank holds an id that the vocabulary does not have.
        """
        start, fetched = first_sample, None
        with ThreadPoolExecutor(1, "batches") as thread:
            for number in range(count):
                ready = None if fetched is None else fetched.result()
                if number % PREPARED_AHEAD == 0:
                    ahead = min(PREPARED_AHEAD, count - number)
                    last = self._sizes.samples_before(ahead, consumed=start)
                    with while_building():
                        self._prepare(start, last)
                size = self._sizes.after(start)
                fetched = thread.submit(self._micro_batches, start, size)
                start += size
                if ready is not None:
                    yield ready
            if fetched is not None:
                yield fetched.result()

    def _prepare(self, first: int, last: int) -> None:
        """Let the first rank build what indices samples [first, last) lack; the others wait. Collective."""
        on_first_rank(lambda: self._build(first, last), IndexFailed, group=self._patient)

    def _build(self, first: int, last: int) -> None:
        """Build them; IndexFailed for an error of any kind, as the other ranks wait for this one."""
        try:
            self.samples.prepare(first, last)
        except Exception as error:
            told = str(error) if isinstance(error, ConfigError | OSError) else f"{type(error).__name__}: {error}"
            raise IndexFailed(f"the indices of samples {first:,} to {last - 1:,} could not be built: {told}") from error

    @cached_property
    def _patient(self) -> torch.distributed.ProcessGroup:
        """All ranks, over gloo, for waits that no other collective's limit holds for. Collective when first used."""
        return torch.distributed.new_group(backend="gloo", timeout=SLOWEST)

    def _micro_batches(self, start: int, size: int) -> list[TokenBatch]:
        """This rank's part of the global batch of `size` samples from `start` on."""
        return [self._micro_batch(start + row) for row in range(0, size, self._row)]

    def _micro_batch(self, start: int) -> TokenBatch:
        """This rank's part of the samples from `start` on that all ranks take at a time."""
        first = start + self._data.rank * self._batch.micro_batch_size
        try:
            rows = [self.samples[number] for number in range(first, first + self._batch.micro_batch_size)]
        except ConfigError as error:  # tokens are read as they are drawn: the other ranks have other ones
            raise RankFailed(str(error)) from error
        tokens = torch.stack([row.tokens for row in rows])
        return TokenBatch(
            tokens=tokens,
            labels=torch.stack([row.labels for row in rows]),
            document_starts=None if self._document_end is None else document_starts(tokens, self._document_end),
        )


def document_starts(tokens: torch.Tensor, document_end: int) -> torch.Tensor:
    """Where documents begin in tokens [b, s], row after row: at each row and after each `document_end`; last, b s."""
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 0] = True
    begins[:, 1:] = tokens[:, :-1] == document_end
    starts = begins.flatten().nonzero().flatten()
    return torch.cat([starts, torch.tensor([tokens.numel()])]).int()
