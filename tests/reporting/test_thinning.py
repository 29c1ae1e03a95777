"""Long curves in few points: nothing is lost of a stretch but the order inside it."""

from __future__ import annotations

import numpy as np
import pytest

from tinyllama_mcore.reporting.thinning import envelope, smoothed, stretches


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 2500, 12_345])
def test_each_stretch_has_its_mean_and_its_ends(length: int) -> None:
    """Never more than 1000 stretches; numpy's own figures of the first and the last."""
    values = np.random.default_rng(0).normal(size=length)
    starts = stretches(length, 1000)
    thin, width = envelope(values, starts), -(-length // 1000)
    assert len(starts) <= 1000
    for place, part in ((0, values[:width]), (-1, values[(len(starts) - 1) * width :])):
        assert thin.mean[place] == pytest.approx(part.mean())
        assert (thin.least[place], thin.largest[place]) == (part.min(), part.max())
    assert (thin.least.min(), thin.largest.max()) == (values.min(), values.max())


def test_what_is_not_finite_counts_for_nothing() -> None:
    """A stretch without a finite value is NaN; elsewhere the others decide."""
    thin = envelope(np.array([1.0, np.nan, 3.0, np.inf, np.nan, -np.inf]), np.array([0, 2, 4]))
    assert thin.mean[:2].tolist() == thin.largest[:2].tolist() == [1.0, 3.0]
    assert np.isnan([thin.mean[2], thin.least[2], thin.largest[2]]).all()


def test_smoothing_is_a_weighted_mean_of_what_was() -> None:
    """Weights e^(-age/span), over their sum: by numpy's average, with a value missing."""
    values = np.random.default_rng(1).normal(size=50) + 5
    values[20] = np.nan
    found = smoothed(values, 7.0)
    for last in (0, 10, 20, 49):
        known = np.flatnonzero(np.isfinite(values[: last + 1]))
        weights = np.exp(-(known[-1] - known) / 7.0)
        weights[known < 20] *= np.exp(1 / 7.0) if last > 20 else 1.0  # a missing value is no step
        assert found[last] == pytest.approx(np.average(values[known], weights=weights))
