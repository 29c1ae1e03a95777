"""The samples of a run: which tokens sample i holds depends only on the data and the seed.

Megatron's GPTDataset shuffles by the number of epochs asked for, so a lengthened run would get another order from its
first sample. Here a dataset is a sequence of epochs, each a GPTDataset of exactly one epoch with its own seed, and the
blend is Megatron's greedy pattern over one fixed block, repeated. So sample i is found in constant time, whatever
train_iters, layout or number of processes. Neighbours: `epochs` builds and opens the GPTDatasets, `loader` batches,
`sample_order` is what a checkpoint keeps of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import receipt
from tinyllama_mcore.data.indexed import PairInfo
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling.epochs import SPLITS, EpochStore, SampleRules
from tinyllama_mcore.sampling.sample_order import BlendHistory, Dataset

BLOCK = 1 << 20
"""Samples after which the pattern of the blend repeats. It is part of the order: changing it reshuffles every run."""
_PART = 4096
"""Samples of a block that are counted together, once."""


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

    def __init__(self, weights: tuple[float, ...], flag: str = "--data-path") -> None:
        """Lay out the block.

        Raises:
            ConfigError: a weight is not positive, or too small to be drawn in a block. The message names `flag`.
        """
        from megatron.core.datasets import helpers

        total = math.fsum(weights)
        for position, weight in enumerate(weights):
            if not (math.isfinite(total) and weight > 0 and weight * BLOCK >= total):
                raise ConfigError(
                    f"{flag}: weight {weight:g} of dataset {position + 1} cannot be drawn; a weight "
                    f"must be at least {total / BLOCK:.3g}, one sample in {BLOCK:,} (or leave the dataset out)"
                )
        self.dataset = np.zeros(BLOCK, dtype=np.int16)
        self.rank_in_dataset = np.zeros(BLOCK, dtype=np.int64)
        shares = [weight / total for weight in weights]
        helpers.build_blending_indices(self.dataset, self.rank_in_dataset, shares, len(shares), BLOCK, False)
        parts = self.dataset.reshape(-1, _PART)
        before = np.cumsum([np.bincount(part, minlength=len(weights)) for part in parts], axis=0)
        self.before = np.concatenate([np.zeros_like(before[:1]), before])
        self.counts = self.before[-1]

    def place(self, sample: int) -> tuple[int, int]:
        """(dataset, how many samples of that dataset come before) for a sample of the blend."""
        block, offset = divmod(sample, BLOCK)
        dataset = int(self.dataset[offset])
        return dataset, block * int(self.counts[dataset]) + int(self.rank_in_dataset[offset])

    def consumed(self, samples: int) -> tuple[int, ...]:
        """How many of the first `samples` samples each dataset gives."""
        blocks, rest = divmod(samples, BLOCK)
        parts = rest // _PART
        last = np.bincount(self.dataset[parts * _PART : rest], minlength=len(self.counts))
        counts = blocks * self.counts + self.before[parts] + last
        return tuple(int(count) for count in counts)


class BlendedSamples:
    """An endless sequence of samples: `samples[i]` after `prepare` has built the epochs that i falls in."""

    def __init__(self, stores: tuple[EpochStore, ...], pattern: BlendPattern, history: BlendHistory) -> None:
        """The epochs of each dataset, the order in which the datasets are drawn, and what was drawn before."""
        self.stores = stores
        self.pattern = pattern
        self.history = history
        # a dataset's content is read from the disk to be named: not where there is nothing to find again
        self.seen, self.dropped = history.split(self.datasets) if history.drawn else ((0,) * len(stores), ())
        """Samples of each dataset that were drawn before this blend began, and what was drawn of other datasets."""

    def after(self, history: BlendHistory) -> BlendedSamples:
        """The same blend in a run that drew from others before."""
        return BlendedSamples(self.stores, self.pattern, history)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets, in the order of the blend."""
        return tuple(
            Dataset(prefix=store.prefix, fingerprint=store.fingerprint, token_sample=store.token_sample)
            for store in self.stores
        )

    def place(self, sample: int) -> Place:
        """Where a sample comes from, one from the start of this blend on. Closed form."""
        assert sample >= self.history.start
        dataset, drawn_before = self.pattern.place(sample - self.history.start)
        return Place(dataset, *divmod(self.seen[dataset] + drawn_before, self.stores[dataset].samples_per_epoch))

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
            for store, epochs in self._epochs_of(first, last):
                for epoch in epochs:
                    store.build(epoch)
        barrier()

    def refuse_unwritable_cache(self, first: int, last: int) -> None:
        """ConfigError where an index of samples [first, last) would have to be written and cannot."""
        for store, epochs in self._epochs_of(first, last):
            store.refuse_unwritable_cache(epochs)

    def _epochs_of(self, first: int, last: int) -> Iterator[tuple[EpochStore, range]]:
        """The datasets, and the epochs of each that samples [first, last) fall in."""
        for store, begin, end in zip(self.stores, self._consumed(first), self._consumed(last), strict=True):
            yield store, range(begin // store.samples_per_epoch, -(-end // store.samples_per_epoch))

    def consumed(self, samples: int) -> dict[str, int]:
        """How many of the run's first `samples` samples came from each dataset, by prefix; from dropped ones too."""
        total = Counter(dict(zip(self.prefixes, self._consumed(samples), strict=True)))
        total.update({entry.prefix: entry.samples for entry in self.dropped})
        return dict(total)

    def _consumed(self, samples: int) -> list[int]:
        """How many of the run's first `samples` samples came from each dataset of the blend."""
        drawn = self.pattern.consumed(samples - self.history.start)
        return [before + since for before, since in zip(self.seen, drawn, strict=True)]

    def epochs(self, samples: int) -> dict[str, tuple[float, int]]:
        """By prefix: how often a run of so many samples reads each dataset, and the tokens that one epoch trains on."""
        return {
            store.prefix: (drawn / store.samples_per_epoch, store.samples_per_epoch * store.seq_length)
            for store, drawn in zip(self.stores, self._consumed(samples), strict=True)
        }

    def told(self) -> str:
        """Where this blend begins, in words."""
        began = [
            f"{prefix} continues after {seen:,} samples" if seen else f"{prefix} is new"
            for prefix, seen in zip(self.prefixes, self.seen, strict=True)
        ]
        began += [f"{entry.prefix} is dropped after {entry.samples:,} samples" for entry in self.dropped]
        return f"changed at sample {self.history.start:,}: {', '.join(began)}"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The datasets, in the order of the blend."""
        return tuple(store.prefix for store in self.stores)


def refuse_training_data(train: BlendedSamples, valid: BlendedSamples) -> None:
    """ConfigError where a separate validation dataset is trained on too, under any name."""
    trained_on = train.datasets
    for dataset in valid.datasets:
        for other in trained_on:
            if dataset.has_content_of(other):
                raise ConfigError(
                    f"--valid-data-path {dataset.prefix}: the run also trains on it, as --data-path {other.prefix}; "
                    "name other data to validate on, or use --split"
                )


def _refuse_twice(pairs: Sequence[PairInfo], flag: str) -> None:
    """ConfigError where two datasets are one, by whatever names: a link, another spelling, a copy."""
    first: dict[tuple[str, str], str] = {}
    for pair in pairs:
        content = pair.fingerprint, pair.token_sample
        if content in first:
            other = "" if first[content] == pair.prefix else f" (as {first[content]})"
            raise ConfigError(f"{flag}: {pair.prefix} is given twice{other}; give it once, with the sum of its weights")
        first[content] = pair.prefix


def open_blend(
    data: DataConfig, *, split: str, seq_length: int, seed: int, vocabulary: Vocabulary
) -> BlendedSamples | None:
    """Check the datasets of a run and open their "train", "valid" or "test" samples; None where the split has no share.

    Reads headers and document lengths only; `prepare` does the work. ConfigError for data that does not fit.
    """
    separate = data.valid_blend if split == "valid" else ()
    blend, shares = (separate, (0.0, 1.0, 0.0)) if separate else (data.blend, data.split)
    flag = "--valid-data-path" if separate else "--data-path"
    pairs = [receipt.check(prefix, vocabulary, flag) for _, prefix in blend]
    _refuse_twice(pairs, flag)
    if shares[SPLITS.index(split)] == 0:
        return None
    rules = SampleRules(
        shares=shares,
        split=split,
        seq_length=seq_length,
        seed=seed,
        vocabulary=vocabulary,
        cache_dir=data.cache_dir,
    )
    stores = tuple(EpochStore(pair, rules) for pair in pairs)
    return BlendedSamples(stores, BlendPattern(tuple(weight for weight, _ in blend), flag), BlendHistory())
