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


def iterations(
    samples: Samples,
    *,
    consumed_samples: int,
    batch: BatchConfig,
    num_micro_batches: int,
    dp_rank: int,
    dp_size: int,
) -> Iterator[list[TokenBatch]]:
    """The micro-batches of `dp_rank` for one iteration after another, without end.

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
        yield [_stack(samples, first, batch.micro_batch_size) for first in firsts]


def _stack(samples: Samples, first: int, count: int) -> TokenBatch:
    rows = [samples[i] for i in range(first, first + count)]
    return TokenBatch(
        tokens=torch.stack([row.tokens for row in rows]), labels=torch.stack([row.labels for row in rows])
    )
