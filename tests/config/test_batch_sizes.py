"""Batch-size warm-up against Megatron-core's own calculator, and the sums that follow from it against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tinyllama_mcore.config.batch_sizes import BatchSizes, Ramp

CASES = [
    (64, (16, 16, 1000)),
    (64, (16, 16, 48)),
    (64, (4, 4, 997)),
    (64, (4, 12, 5)),
    (1024, (32, 32, 20_000)),
    (1024, (1, 1, 49)),
    (8, (1, 1, 9)),  # 9 / (9 / 7) rounds below 7: Megatron-core's last step comes a sample later
    (99, (50, 1, 7)),
    (8, (4, 4, 1)),
]
"""Full size and ramp."""


def megatrons(full: int, ramp: Ramp) -> Iterator[tuple[int, int]]:
    """(samples consumed before, size) of each iteration, from the first, by Megatron-core."""
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    theirs = RampupBatchsizeNumMicroBatchesCalculator(full, 1, 1, False, 1, *ramp)
    consumed = 0
    while True:
        theirs.update(consumed, consistency_check=True)
        size = theirs.get_current_global_batch_size()
        assert theirs.get() == size
        yield consumed, size
        consumed += size


@pytest.mark.parametrize(("full", "ramp"), CASES, ids=str)
def test_sizes_are_megatron_cores(full: int, ramp: Ramp) -> None:
    """At each number of samples that a run comes by, at those between, and after the ramp."""
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    sizes = BatchSizes(full=full, ramp=ramp)
    for (consumed, size), _ in zip(megatrons(full, ramp), range(1500), strict=False):
        assert sizes.after(consumed) == size
    theirs = RampupBatchsizeNumMicroBatchesCalculator(full, 1, 1, False, 1, *ramp)
    for consumed in range(ramp[2] + 3):
        theirs.update(consumed, consistency_check=True)
        assert sizes.after(consumed) == theirs.get_current_global_batch_size(), consumed


@pytest.mark.parametrize(("full", "ramp"), [*CASES, (64, None)], ids=str)
def test_sums_are_those_of_the_iterations(full: int, ramp: Ramp | None) -> None:
    """Samples before each iteration, from zero and from any other; iterations within any number of samples."""
    sizes = BatchSizes(full=full, ramp=ramp)
    starts = [0]
    while len(starts) < 200 or starts[-1] < (ramp or (0, 0, 0))[2] + 3 * full:
        starts.append(starts[-1] + sizes.after(starts[-1]))
    for iteration, start in enumerate(starts):
        assert sizes.samples_before(iteration) == start
        assert sizes.iterations_within(start) == iteration
        assert sizes.iterations_within(start + sizes.after(start) - 1) == iteration
    for begin in (1, len(starts) // 3, len(starts) - 1):
        for iteration, start in enumerate(starts[begin:]):
            assert sizes.samples_before(iteration, consumed=starts[begin]) == start
    between = starts[2] + 1  # where a rollback went on behind samples that it skipped
    assert sizes.samples_before(2, consumed=between) == between + sizes.after(between) + sizes.after(
        between + sizes.after(between)
    )


def test_a_long_ramp_is_summed_in_a_moment() -> None:
    """Three trillion tokens, of which GPT-3's share is a ramp; no iteration is visited by itself."""
    sizes = BatchSizes(full=1024, ramp=(32, 32, 5_859_375))
    stretches = list(sizes.stretches())
    assert len(stretches) < 100
    smaller = sum(count for count, _ in stretches[:-1])
    assert sizes.after(sizes.samples_before(smaller)) == 1024
    assert sizes.after(sizes.samples_before(smaller - 1)) < 1024
