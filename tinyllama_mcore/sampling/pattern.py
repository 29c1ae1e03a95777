"""Which dataset a sample of a run comes from, in closed form: the pattern of a blend, and one blend after another.

Neighbours: `blend` draws the samples, `sample_order` is what a checkpoint keeps of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyllama_mcore.config.errors import ConfigError

BLOCK = 1 << 20
"""Samples after which the pattern of the blend repeats. It is part of the order: changing it reshuffles every run."""
_PART = 4096
"""Samples of a block that are counted together, once."""


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
        self.weights = weights
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


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A blend of a run, from its first sample to that of the next."""

    first_sample: int
    """Number of its first sample among those of the run, from 0."""
    pattern: BlendPattern
    columns: tuple[int, ...]
    """Of each of its datasets: the position among all datasets of the run."""


class PhaseOrder:
    """The blends of a run, one after another; each lays out its pattern from its own first sample on."""

    def __init__(self, phases: Sequence[Phase], datasets: int, begin: int) -> None:
        """The last phases of a run, of which the first takes over at sample `begin`, over all of its `datasets`."""
        self._phases = phases
        self._begins = [begin, *[max(begin, phase.first_sample) for phase in phases[1:]]]
        self._before = [np.zeros(datasets, dtype=np.int64)]
        for number, end in enumerate(self._begins[1:]):
            self._before.append(self._drawn(number, end))

    def _drawn(self, number: int, samples: int) -> np.ndarray:
        """What the run's samples up to `samples`, which phase `number` gives the last of, draw of each dataset."""
        drawn = self._before[number].copy()
        phase = self._phases[number]
        drawn[list(phase.columns)] += phase.pattern.consumed(samples - self._begins[number])
        return drawn

    def _phase(self, sample: int) -> int:
        """The phase that gives a sample of the run."""
        return bisect.bisect_right(self._begins, sample) - 1

    def place(self, sample: int) -> tuple[int, int]:
        """(dataset, how many samples of that dataset come before, from `begin` on) for a sample of the run."""
        assert sample >= self._begins[0]
        number = self._phase(sample)
        phase = self._phases[number]
        own, drawn = phase.pattern.place(sample - self._begins[number])
        dataset = phase.columns[own]
        return dataset, int(self._before[number][dataset]) + drawn

    def consumed(self, samples: int) -> tuple[int, ...]:
        """How many of the run's samples from `begin` up to number `samples` each dataset gives."""
        return tuple(int(count) for count in self._drawn(self._phase(max(samples - 1, self._begins[0])), samples))


def phase_of(phases: Sequence[Phase], samples: int) -> int:
    """The phase that the last of the run's first `samples` samples is planned to come from."""
    return max(0, bisect.bisect_right([phase.first_sample for phase in phases], samples - 1) - 1)
