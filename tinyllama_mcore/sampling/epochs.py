"""One dataset as a sequence of epochs, each a Megatron GPTDataset of exactly one epoch with a seed of its own.

Epochs are shuffled differently and never mixed, and epoch e is the same however many follow it. Within its first epoch
a run draws what Megatron itself would. Indices are cached on disk under a name made from the content they follow from.
Megatron builds and names the indices; tokens are read here, by position and not through mapped pages.
Neighbours: `blend` says which sample of which epoch is next. Imports Megatron where it is used: that takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.data.indexed import PairInfo, TokenReader, randomly_read
from tinyllama_mcore.data.tokenizer import Vocabulary

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset

SEED_STEP = 0x9E3779B1
"""Odd, so that 2**32 epochs have different seeds; epoch 0 keeps the run's, as Megatron uses it."""
OPEN_EPOCHS = 2
"""Epochs of a dataset whose indices stay memory-mapped: the one in use and the one before or after."""
SPLITS = ("train", "valid", "test")


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's shuffle, for numpy's RandomState."""
    return (seed + SEED_STEP * epoch) % 2**32


def split_range(shares: tuple[float, float, float], split: str, documents: int) -> tuple[int, int]:
    """The contiguous documents [first, last) of a split: Megatron's arithmetic, rounding included."""
    from megatron.core.datasets import blended_megatron_dataset_config as megatron

    vector = megatron.parse_and_normalize_split(",".join(f"{share:.15f}" for share in shares))
    bounds = megatron.convert_split_vector_to_split_matrix(vector)[SPLITS.index(split)]
    first, last = bounds if bounds else (0.0, 0.0)
    return round(first * documents), round(last * documents)


@dataclass(frozen=True, kw_only=True)
class SampleRules:
    """How documents become samples; the same for all datasets of a run."""

    shares: tuple[float, float, float]
    """Shares of each dataset's documents, for training, validation and test."""
    split: str
    """Which of the three: "train", "valid" or "test"."""
    seq_length: int
    """Tokens in one sample, s."""
    seed: int
    """Seed of the run."""
    vocabulary: Vocabulary
    """Which ids there are."""
    cache_dir: str | None = None
    """Where indices go. None: a directory `cache` beside each pair."""


class Span(NamedTuple):
    """Consecutive tokens of one document."""

    document: int
    """Position in the pair."""
    first: int
    """Token of the document, from 0."""
    tokens: int


class EpochStore:
    """The epochs of one dataset's split."""

    def __init__(self, pair: PairInfo, rules: SampleRules) -> None:
        """Size up the split. ConfigError if it holds less than one sample."""
        self.prefix = pair.prefix
        self.seq_length = rules.seq_length
        self._rules = rules
        self._documents = split_range(rules.shares, rules.split, pair.sequences)
        self.fingerprint = pair.fingerprint
        self._pair = pair
        self._cache = Path(rules.cache_dir) if rules.cache_dir else Path(pair.prefix).parent / "cache"
        self._open: OrderedDict[int, GPTDataset] = OrderedDict()
        self._indexed: IndexedDataset | None = None
        self._tokens = TokenReader(pair)
        self._lengths = pair.lengths()
        first, last = self._documents
        tokens = int(self._lengths[first:last].sum(dtype=np.int64))
        self.samples_per_epoch = (tokens - 1) // rules.seq_length
        """Whole samples of an epoch; the tokens after the last are not drawn in it (another epoch leaves others)."""
        if self.samples_per_epoch < 1:
            split = ",".join(f"{share:g}" for share in rules.shares)
            whole = last - first == pair.sequences
            part = "" if whole else f"the {rules.split} part of --split {split} has {last - first} document(s), "
            raise ConfigError(
                f"{pair.named}: {part}{tokens} tokens; one sample needs --seq-length + 1 = {rules.seq_length + 1}: "
                "give it a larger share or more text, or lower --seq-length"
            )

    def build(self, epoch: int) -> None:
        """Write the index of an epoch to the cache, unless it is there. Whole or not at all, also beside other jobs."""
        place = self._cache_of(epoch)
        if place.is_dir():
            return
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            partial = tempfile.mkdtemp(prefix=f"{place.name}.partial-", dir=self._cache)
        except OSError as error:
            raise ConfigError(self._no_cache(error.strerror or str(error))) from None
        try:
            self._dataset(epoch, Path(partial))
            os.chmod(partial, 0o755)  # mkdtemp's 0o700 would keep other users of the data out
            os.rename(partial, place)
        except OSError:
            if not place.is_dir():  # else another job was first, with the same index
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def refuse_unwritable_cache(self, epochs: range) -> None:
        """ConfigError where the index of one of the epochs is not cached, and the cache cannot be written."""
        problem = unwritable(self._cache)
        if problem is not None and not all(self._cache_of(epoch).is_dir() for epoch in epochs):
            raise ConfigError(self._no_cache(problem))

    def _no_cache(self, problem: str) -> str:
        return (
            f"{self._pair.named}: no index can be written to {self._cache} ({problem}); make it writable or "
            "name another with --data-cache-path"
        )

    @property
    def token_sample(self) -> str:
        """See `PairInfo`; read when it is first asked for."""
        return self._pair.token_sample

    def sample(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and labels, int64 [s] each. ConfigError for an id outside the vocabulary."""
        parts = [self._tokens.read(*span) for span in self.spans(epoch, index)]
        row = torch.from_numpy(np.concatenate(parts, dtype=np.int64))  # [s + 1]
        if not 0 <= int(row.min()) <= int(row.max()) < self._rules.vocabulary.vocab_size:
            raise ConfigError(self._foreign_id(epoch, index))
        return row[:-1], row[1:]

    def spans(self, epoch: int, index: int) -> list[Span]:
        """What the `seq_length + 1` tokens of a sample are made of, in order: Megatron's arithmetic."""
        dataset = self._epoch(epoch)
        row = dataset.shuffle_index[index]
        (first, skipped), (last, stop) = dataset.sample_index[row].tolist(), dataset.sample_index[row + 1].tolist()
        spans = []
        for entry in range(first, last + 1):
            document = int(dataset.document_index[entry])
            begin = skipped if entry == first else 0
            end = stop + 1 if entry == last else int(self._lengths[document])
            spans.append(Span(document, begin, end - begin))
        return spans

    def _cache_of(self, epoch: int) -> Path:
        origin = {
            "fingerprint": self.fingerprint,
            "documents": self._documents,
            "split": self._rules.split,
            "seq_length": self._rules.seq_length,
            "seed": epoch_seed(self._rules.seed, epoch),
            "vocabulary": self._rules.vocabulary.unique_identifiers,
        }
        name = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]
        return self._cache / f"{Path(self.prefix).name}-{self._rules.split}-{name}"

    def _epoch(self, epoch: int) -> GPTDataset:
        if epoch not in self._open:
            place = self._cache_of(epoch)
            if not place.is_dir():
                raise FileNotFoundError(f"epoch {epoch} of {self.prefix} was not prepared: {place} does not exist")
            _refuse_pickles(place)
            dataset = self._dataset(epoch, place)
            for index in (dataset.shuffle_index, dataset.sample_index, dataset.document_index):
                randomly_read(index)
            self._open[epoch] = dataset
            if len(self._open) > OPEN_EPOCHS:
                self._open.popitem(last=False)
        return self._open[epoch]

    def _dataset(self, epoch: int, cache: Path) -> GPTDataset:
        """Megatron's dataset of one epoch, its index read from `cache`, or built into it where it is not there."""
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.utils import Split

        config = GPTDatasetConfig(
            random_seed=epoch_seed(self._rules.seed, epoch),
            sequence_length=self._rules.seq_length,
            blend=([self.fingerprint], None),  # what Megatron names its files by; a moved pair keeps its index
            split="1,0,0",  # documents are cut here, by _documents
            path_to_cache=str(cache),
            tokenizer=self._rules.vocabulary,
            reset_position_ids=False,  # the paper packs documents with neither resets nor masks
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        if self._indexed is None:
            self._indexed = GPTDataset.build_low_level_dataset(self.prefix, config)
        documents = np.arange(*self._documents, dtype=np.int32)
        return GPTDataset(self._indexed, self.fingerprint, documents, None, Split[self._rules.split], config)

    def _foreign_id(self, epoch: int, index: int) -> str:
        for span in self.spans(epoch, index):
            ids = self._tokens.read(*span).astype(np.int64)
            foreign = ids[(ids < 0) | (ids >= self._rules.vocabulary.vocab_size)]
            if len(foreign):
                return (
                    f"{self._pair.named}: document {span.document} of {self.prefix}.bin holds token id "
                    f"{foreign[0]}, but the vocabulary is 0 to {self._rules.vocabulary.vocab_size - 1}: "
                    f"it was made with another tokenizer"
                )
        raise AssertionError("a sample holds an id that none of its documents has")


def _refuse_pickles(cache: Path) -> None:
    """ConfigError where an index in the cache is anything but numbers.

    Megatron reads these files with numpy's `allow_pickle=True` (0.16.1 and 0.19.2), which runs what a pickle says;
    tests/test_hostile_files.py has one.
    """
    for file in sorted(cache.glob("*.npy")):
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{file} is not an index of samples ({error}): remove {cache}, which will be built again"
            ) from None
