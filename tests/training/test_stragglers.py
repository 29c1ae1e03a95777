"""Who is the slowest, from the figures of all ranks. What a rank measures of itself is in tests/distributed."""

from __future__ import annotations

import math

import pytest

from tinyllama_mcore.training.stragglers import straggler_of


def test_the_slowest_is_compared_with_the_others() -> None:
    """The median without itself, so that one of two ranks is compared with the other one."""
    found = straggler_of([1.0, 3.0, 2.0, 1.5], [0.1, 0.2, 0.0, 0.3], ["a", "b", "c", "d"])
    assert found is not None
    assert (found.rank, found.host, found.pass_s, found.median_pass_s) == (1, "b", 3.0, 1.5)
    assert found.over_median == pytest.approx(1.0)
    assert (found.data_rank, found.data_host, found.data_wait_s) == (3, "d", 0.3)
    two = straggler_of([2.0, 1.0], [0.0, 0.0], ["a", "b"])
    assert two is not None and (two.rank, two.over_median) == (0, pytest.approx(1.0))


def test_a_rank_without_passes_is_not_among_them() -> None:
    """A pipeline rank may have no decoder layer."""
    found = straggler_of([math.nan, 1.0, 1.25], [9.0, 0.0, 0.0], ["a", "b", "c"])
    assert found is not None
    assert (found.rank, found.over_median, found.data_rank) == (2, pytest.approx(0.25), 0)


@pytest.mark.parametrize("passes", [[math.nan, math.nan], [1.0, math.nan]])
def test_one_rank_is_compared_with_nobody(passes: list[float]) -> None:
    """Nothing is said."""
    assert straggler_of(passes, [0.0, 0.0], ["a", "b"]) is None
