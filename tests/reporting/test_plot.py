"""The picture of a loss curve: what is drawn, and that it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyllama_mcore.reporting.metrics_file import Curve
from tinyllama_mcore.reporting.plot import plot_loss, thin


def curve(length: int, label: str = "a run") -> Curve:
    """Falls from 7 to 3 nats."""
    steps = range(1, length + 1)
    return Curve(
        label=label,
        iterations=tuple(steps),
        tokens=tuple(2048 * i for i in steps),
        losses=tuple(3 + 4 / i**0.5 for i in steps),
    )


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 2500, 12_345])
def test_thinning_keeps_the_mean_of_each_stretch(length: int) -> None:
    """Never more than 1000 points, none lost: the weighted mean is the mean of all."""
    values = np.random.default_rng(0).normal(size=length)
    thinned = thin(values)
    width = -(-length // 1000)
    assert len(thinned) <= 1000
    assert thinned[0] == pytest.approx(values[:width].mean())
    assert thinned[-1] == pytest.approx(values[(len(thinned) - 1) * width :].mean())


def test_the_picture_has_ink(tmp_path: Path) -> None:
    """A PNG that is neither blank nor without its curve: two runs and a level leave more ink than one run."""
    from matplotlib.image import imread

    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    plot_loss([curve(100)], one, title="one")
    plot_loss([curve(100), curve(50, "another")], two, title="two", levels={"unigram entropy": 5.5})
    ink = [float((1 - imread(path)[..., :3]).sum()) for path in (one, two)]
    assert 0 < ink[0] < ink[1]
