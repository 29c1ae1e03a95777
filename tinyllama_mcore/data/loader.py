"""Micro-batches of one data-parallel rank, in order, from any number of consumed samples on.

Which samples an iteration holds does not depend on the layout: rank and micro-batch only say who takes which of them
(the arithmetic of Megatron's pretraining sampler). Resuming is an offset, nothing is replayed. Neighbour: `blend`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from tinyllama_mcore.config.schema import BatchConfig
from tinyllama_mcore.data.blend import Sample


class Samples(Protocol):
    """What is batched: an endless sequence."""

    def __getitem__(self, sample: int, /) -> Sample:
        """Sample number `sample` of the run."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """One micro-batch, on the host."""

    tokens: torch.Tensor
    """int64 [b, s]."""
    labels: torch.Tensor
    """int64 [b, s]."""
    document_starts: torch.Tensor | None = None
    """int32 [documents + 1]: where documents begin in the b s tokens, row after row, and b s. None: not told apart."""


def iterations(
    samples: Samples,
    *,
    consumed_samples: int,
    batch: BatchConfig,
    num_micro_batches: int,
    dp_rank: int,
    dp_size: int,
    document_end: int | None = None,
) -> Iterator[list[TokenBatch]]:
    """The micro-batches of `dp_rank` for one iteration after another, without end.

    With `document_end`, the id that ends a document, batches say where documents begin (`TokenBatch.document_starts`).
    Fetched in the calling process: a sample takes well under a millisecond (docs/data.md).
    """
    row = batch.micro_batch_size * dp_size
    if row * num_micro_batches != batch.global_batch_size:
        raise ValueError(
            f"{num_micro_batches} micro-batches of {batch.micro_batch_size} on {dp_size} ranks are not a global batch "
            f"of {batch.global_batch_size}"
        )
    for start in itertools.count(consumed_samples, batch.global_batch_size):
        firsts = (start + m * row + dp_rank * batch.micro_batch_size for m in range(num_micro_batches))
        yield [_stack(samples, first, batch.micro_batch_size, document_end) for first in firsts]


def _stack(samples: Samples, first: int, count: int, document_end: int | None) -> TokenBatch:
    rows = [samples[i] for i in range(first, first + count)]
    tokens = torch.stack([row.tokens for row in rows])
    return TokenBatch(
        tokens=tokens,
        labels=torch.stack([row.labels for row in rows]),
        document_starts=None if document_end is None else document_starts(tokens, document_end),
    )


def document_starts(tokens: torch.Tensor, document_end: int) -> torch.Tensor:
    """Where documents begin in tokens [b, s], row after row: at each row and after each `document_end`; last, b s."""
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    begins[:, 0] = True
    begins[:, 1:] = tokens[:, :-1] == document_end
    starts = begins.flatten().nonzero().flatten()
    return torch.cat([starts, torch.tensor([tokens.numel()])]).int()
