"""The samples of a run: which tokens sample i holds follows from the data and the seed alone.

Megatron's GPTDataset shuffles by the number of epochs asked for, so a lengthened run would get another order from its
first sample. Here a dataset is a sequence of epochs, each a GPTDataset of exactly one epoch with its own seed, and the
blend is Megatron's greedy pattern over one fixed block, repeated. So sample i is found in constant time, whatever
train_iters, layout or number of processes. Neighbours: `epochs` builds and opens the GPTDatasets, `loader` batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tinyllama_mcore.config.schema import ConfigError, DataConfig
from tinyllama_mcore.data import receipt
from tinyllama_mcore.data.epochs import SPLITS, EpochStore, SampleRules
from tinyllama_mcore.data.tokenizer import Vocabulary

BLOCK = 1 << 20
"""Samples after which the pattern of the blend repeats. It is part of the order: changing it reshuffles every run."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sequence and what follows each of its tokens."""

    tokens: torch.Tensor
    """int64 [s]."""
    labels: torch.Tensor
    """int64 [s]: labels[t] is the token after tokens[t]."""


class Place(NamedTuple):
    """Where a sample of the blend comes from."""

    dataset: int
    """Position in the blend."""
    epoch: int
    """How many times its dataset was drawn to the end before."""
    position: int
    """In the order of that epoch, from 0."""


class BlendPattern:
    """Megatron's greedy blend of one block: each sample goes to the dataset that is furthest below its share."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        """Lay out the block. ConfigError for a weight that is not positive, or too small to be drawn in a block."""
        from megatron.core.datasets import helpers

        total = math.fsum(weights)
        for position, weight in enumerate(weights):
            if not (math.isfinite(total) and weight > 0 and weight * BLOCK >= total):
                raise ConfigError(
                    f"--data-path: weight {weight:g} of dataset {position + 1} cannot be drawn; a weight must "
                    f"be at least {total / BLOCK:.3g}, one sample in {BLOCK:,} (leave the dataset out instead)"
                )
        self.dataset = np.zeros(BLOCK, dtype=np.int16)
        self.rank_in_dataset = np.zeros(BLOCK, dtype=np.int64)
        shares = [weight / total for weight in weights]
        helpers.build_blending_indices(self.dataset, self.rank_in_dataset, shares, len(shares), BLOCK, False)
        self.counts = np.bincount(self.dataset, minlength=len(weights))

    def place(self, sample: int) -> tuple[int, int]:
        """(dataset, how many samples of that dataset come before) for a sample of the blend."""
        block, offset = divmod(sample, BLOCK)
        dataset = int(self.dataset[offset])
        return dataset, block * int(self.counts[dataset]) + int(self.rank_in_dataset[offset])

    def consumed(self, samples: int) -> tuple[int, ...]:
        """How many of the first `samples` samples each dataset gives."""
        blocks, rest = divmod(samples, BLOCK)
        counts = blocks * self.counts + np.bincount(self.dataset[:rest], minlength=len(self.counts))
        return tuple(int(count) for count in counts)


class BlendedSamples:
    """An endless sequence of samples: `samples[i]` after `prepare` has built the epochs that i falls in."""

    def __init__(self, stores: tuple[EpochStore, ...], pattern: BlendPattern) -> None:
        """The epochs of each dataset, and the order in which the datasets are drawn."""
        self.stores = stores
        self.pattern = pattern

    def place(self, sample: int) -> Place:
        """Where a sample comes from. Closed form."""
        dataset, drawn_before = self.pattern.place(sample)
        return Place(dataset, *divmod(drawn_before, self.stores[dataset].samples_per_epoch))

    def __getitem__(self, sample: int) -> Sample:
        """Sample number `sample` of the run. ConfigError for a token id that the vocabulary does not have."""
        dataset, epoch, position = self.place(sample)
        tokens, labels = self.stores[dataset].sample(epoch, position)
        return Sample(tokens=tokens, labels=labels)

    def prepare(self, first: int, last: int, *, builds: bool, barrier: Callable[[], None]) -> None:
        """Make the indices for samples [first, last) exist on disk; every rank calls this.

        `builds` is true on global rank 0 only (Megatron builds nowhere else once torch.distributed is up); the others
        wait at `barrier`. Built indices are reused by later runs.
        """
        if builds:
            for store, begin, end in zip(
                self.stores, self.pattern.consumed(first), self.pattern.consumed(last), strict=True
            ):
                for epoch in range(begin // store.samples_per_epoch, -(-end // store.samples_per_epoch)):
                    store.build(epoch)
        barrier()

    def consumed(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples came from each dataset, by prefix."""
        return dict(zip(self.prefixes, self.pattern.consumed(samples), strict=True))

    @property
    def tokens_per_epoch(self) -> dict[str, int]:
        """Tokens that one epoch of each dataset trains on, by prefix."""
        return {store.prefix: store.samples_per_epoch * store.seq_length for store in self.stores}

    @property
    def fingerprints(self) -> list[str]:
        """What names the content of each dataset, in the order of the blend."""
        return [store.fingerprint for store in self.stores]

    @property
    def token_samples(self) -> list[str]:
        """What names the tokens of each dataset, in the order of the blend."""
        return [store.token_sample for store in self.stores]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The datasets, in the order of the blend."""
        return tuple(store.prefix for store in self.stores)


def open_blend(
    data: DataConfig, *, split: str, seq_length: int, seed: int, vocabulary: Vocabulary
) -> BlendedSamples | None:
    """Check the datasets of a run and open their "train", "valid" or "test" samples; None where the split has no share.

    Reads headers and document lengths only; `prepare` does the work. ConfigError for data that does not fit.
    """
    prefixes = [prefix for _, prefix in data.blend]
    twice = sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1})
    if twice:
        raise ConfigError(f"--data-path: {twice[0]} is given twice; add its weights up and give it once")
    pairs = [receipt.check(prefix, vocabulary) for prefix in prefixes]
    if data.split[SPLITS.index(split)] == 0:
        return None
    rules = SampleRules(
        shares=data.split,
        split=split,
        seq_length=seq_length,
        seed=seed,
        vocabulary=vocabulary,
        cache_dir=data.cache_dir,
    )
    stores = tuple(EpochStore(pair, rules) for pair in pairs)
    return BlendedSamples(stores, BlendPattern(tuple(weight for weight, _ in data.blend)))
