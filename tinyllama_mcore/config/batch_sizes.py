"""The sequences of each iteration: one number, or fewer at first (batch-size warm-up, `--rampup-batch-size`).

A size follows from the samples consumed before its iteration, as in Megatron-core's `num_microbatches_calculator`; so a
rollback, which goes on behind the samples that it skips, does not ramp twice. Neighbour: `schema.BatchConfig.sizes`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

Ramp = tuple[int, int, int]
"""Sequences of the first iteration, those that each step adds, samples over which the steps are spread."""
FOREVER = sys.maxsize
"""Iterations of the last stretch."""


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """How many sequences each iteration takes, over the whole job."""

    full: int
    """Sequences of an iteration after the ramp."""
    ramp: Ramp | None
    """None: every iteration is full."""

    def after(self, consumed: int) -> int:
        """Sequences of the iteration that begins after so many samples."""
        if self.ramp is None or consumed > self.ramp[2]:
            return self.full
        start, increment, _ = self.ramp
        return start + int(consumed / self._samples_per_step(self.ramp)) * increment

    def stretches(self, consumed: int = 0) -> Iterator[tuple[int, int]]:
        """(iterations, size) of each stretch of iterations of one size, from one on that begins after `consumed`.

        Neighbours may be of the same size. The last has `FOREVER` iterations, of the full size.
        """
        while self.ramp is not None and (size := self.after(consumed)) < self.full:
            step_end = ((size - self.ramp[0]) // self.ramp[1] + 1) * self._samples_per_step(self.ramp)
            count = max(1, int((step_end - consumed) // size))
            yield count, size
            consumed += count * size
        yield FOREVER, self.full

    def samples_before(self, iteration: int, *, consumed: int = 0) -> int:
        """Samples consumed before `iteration`, from 0; counted from where `consumed` were consumed already."""
        for count, size in self.stretches(consumed):
            consumed += min(count, iteration) * size
            iteration -= min(count, iteration)
            if not iteration:
                break
        return consumed

    def iterations_within(self, samples: int) -> int:
        """The most iterations, from the first, that consume no more than so many samples."""
        iterations = 0
        for count, size in self.stretches():
            whole = min(count, samples // size)
            iterations, samples = iterations + whole, samples - whole * size
            if whole < count:
                break
        return iterations

    def _samples_per_step(self, ramp: Ramp) -> float:
        start, increment, samples = ramp
        return samples / ((self.full - start) // increment)
