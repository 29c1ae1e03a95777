"""The samples of a run: which tokens sample i holds depends only on the data and the seed.

Megatron's GPTDataset shuffles by the number of epochs asked for, so a lengthened run would get another order from its
first sample. Here a dataset is a sequence of epochs, each a GPTDataset of exactly one epoch with its own seed, and the
blend is Megatron's greedy pattern over one fixed block, repeated. So sample i is found in constant time, whatever
train_iters, layout or number of processes. Neighbours: `epochs` builds and opens the GPTDatasets, `loader` batches,
`sample_order` is what a checkpoint keeps of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from tinyllama_mcore.config.data_config import Blend, DataConfig
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import receipt
from tinyllama_mcore.data.indexed import PairInfo
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.sampling.epochs import SPLITS, EpochStore, SampleRules
from tinyllama_mcore.sampling.pattern import BlendPattern, Phase, PhaseOrder, phase_of
from tinyllama_mcore.sampling.sample_order import BlendHistory, Dataset, Drawn


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


class BlendedSamples:
    """An endless sequence of samples: `samples[i]` after `prepare` has built the epochs that i falls in."""

    def __init__(
        self, stores: tuple[EpochStore, ...], phases: tuple[Phase, ...], history: BlendHistory, first: int = 0
    ) -> None:
        """The epochs of each dataset, the blends of the run, and what was drawn before blend number `first` began."""
        self.stores = stores
        self.phases = phases
        self.history = history
        self._first = first
        self._order = PhaseOrder(phases[first:], len(stores), history.start)
        # a dataset's content is read from the disk to be named: not where there is nothing to find again
        self.seen, self.dropped = history.split(self.datasets) if history.drawn else ((0,) * len(stores), ())
        """Samples of each dataset that were drawn before this blend began, and what was drawn of other datasets."""

    def after(self, history: BlendHistory, samples: int) -> BlendedSamples:
        """The same blends in a run that consumed so many samples, and drew from others before the present one began."""
        return BlendedSamples(self.stores, self.phases, history, phase_of(self.phases, samples))

    def planned(self, begins: Sequence[int]) -> BlendedSamples:
        """The same blends, of which those after the first begin at these samples."""
        moved = tuple(replace(phase, first_sample=begin) for phase, begin in zip(self.phases[1:], begins, strict=True))
        return BlendedSamples(self.stores, (self.phases[0], *moved), self.history, self._first)

    def blend_at(self, samples: int) -> tuple[tuple[float, ...], tuple[Dataset, ...], BlendHistory]:
        """The blend that the last of the run's first `samples` samples is of: weights, datasets, what came before."""
        number = phase_of(self.phases, samples)
        phase, datasets, history = self.phases[number], self.datasets, self.history
        if number > self._first:
            drawn = zip(datasets, self._consumed(phase.first_sample), strict=True)
            own = (Drawn(**vars(dataset), samples=count) for dataset, count in drawn if count)
            history = BlendHistory(start=phase.first_sample, drawn=(*own, *self.dropped))
        return phase.pattern.weights, tuple(datasets[column] for column in phase.columns), history

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets of all blends of the run, in the order in which they come up."""
        return tuple(
            Dataset(prefix=store.prefix, fingerprint=store.fingerprint, token_sample=store.token_sample)
            for store in self.stores
        )

    def place(self, sample: int) -> Place:
        """Where a sample comes from, one from the start of the present blend on. Closed form."""
        dataset, drawn_before = self._order.place(sample)
        return Place(dataset, *divmod(self.seen[dataset] + drawn_before, self.stores[dataset].samples_per_epoch))

    def __getitem__(self, sample: int) -> Sample:
        """Sample number `sample` of the run. ConfigError for a token id that the vocabulary does not have."""
        dataset, epoch, position = self.place(sample)
        tokens, labels = self.stores[dataset].sample(epoch, position)
        return Sample(tokens=tokens, labels=labels)

    def prepare(self, first: int, last: int) -> None:
        """Make the indices for samples [first, last) exist on disk, where later runs find them too.

        Only rank 0 may call this while others wait: Megatron builds nowhere else once torch.distributed is up.
        """
        for store, epochs in self._epochs_of(first, last):
            for epoch in epochs:
                store.build(epoch)

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
        """How many of the run's first `samples` samples came from each dataset of its blends."""
        drawn = self._order.consumed(samples)
        return [before + since for before, since in zip(self.seen, drawn, strict=True)]

    def epochs(self, samples: int) -> dict[str, tuple[float, int]]:
        """By prefix: how often a run of so many samples reads each dataset, and the tokens that one epoch trains on."""
        return {
            store.prefix: (drawn / store.samples_per_epoch, store.samples_per_epoch * store.seq_length)
            for store, drawn in zip(self.stores, self._consumed(samples), strict=True)
        }

    def told(self) -> str:
        """Where the present blend begins, in words."""
        own = [(self.prefixes[column], self.seen[column]) for column in self.phases[self._first].columns]
        began = [f"{prefix} continues after {seen:,} samples" if seen else f"{prefix} is new" for prefix, seen in own]
        began += [f"{entry.prefix} is dropped after {entry.samples:,} samples" for entry in self.dropped]
        return f"changed at sample {self.history.start:,}: {', '.join(began)}"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The datasets of all blends, in the order in which they come up."""
        return tuple(store.prefix for store in self.stores)


def refuse_training_data(train: BlendedSamples, valid: BlendedSamples) -> None:
    """ConfigError where a separate validation dataset is trained on too, under any name."""
    trained_on = train.datasets
    for dataset in valid.datasets:
        for other in trained_on:
            if dataset.has_content_of(other):
                raise ConfigError(
                    f"--valid-data-path {dataset.prefix}: the run also trains on it, as {other.prefix}; "
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

    Only training follows the later blends: validation samples stay the same ones. Reads headers and document lengths
    only; `prepare` does the work. ConfigError for data that does not fit.
    """
    separate = data.valid_blend if split == "valid" else ()
    blend, shares = (separate, (0.0, 1.0, 0.0)) if separate else (data.blend, data.split)
    later = data.later_blends if split == "train" else ()
    blends = [(0, blend, "--valid-data-path" if separate else "--data-path")]
    blends += [(each.first_sample, each.blend, "--data-path-from") for each in later]
    pairs, columns = _pairs(blends, vocabulary)
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
    phases = tuple(
        Phase(first_sample=first, pattern=BlendPattern(tuple(weight for weight, _ in blend), flag), columns=own)
        for (first, blend, flag), own in zip(blends, columns, strict=True)
    )
    return BlendedSamples(tuple(EpochStore(pair, rules) for pair in pairs), phases, BlendHistory())


def _pairs(
    blends: Sequence[tuple[int, Blend, str]], vocabulary: Vocabulary
) -> tuple[list[PairInfo], list[tuple[int, ...]]]:
    """The pairs of all blends, each once, and where those of each blend stand among them. See `open_blend`."""
    place: dict[tuple[str, str], int] = {}
    pairs: list[PairInfo] = []
    columns = []
    for _, blend, flag in blends:
        own = [receipt.check(prefix, vocabulary, flag) for _, prefix in blend]
        _refuse_twice(own, flag)
        for pair in own:
            if place.setdefault((pair.fingerprint, pair.token_sample), len(pairs)) == len(pairs):
                pairs.append(pair)
        columns.append(tuple(place[pair.fingerprint, pair.token_sample] for pair in own))
    return pairs, columns
