"""The picture of a loss curve: that it is drawn."""

from __future__ import annotations

from pathlib import Path

from tests.reporting.long_run import write
from tinyllama_mcore.reporting.metrics_file import read
from tinyllama_mcore.reporting.plot import plot_loss


def test_the_picture_has_ink(tmp_path: Path) -> None:
    """A PNG that is neither blank nor without its curve: two runs and a level leave more ink than one run."""
    from matplotlib.image import imread

    runs = []
    for name, length in (("a", 100), ("b", 1500)):
        write(tmp_path / f"{name}.jsonl", length, spike=0)
        runs.append(read(tmp_path / f"{name}.jsonl"))
    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    plot_loss(runs[:1], one, title="one")
    plot_loss(runs, two, title="two", levels={"unigram entropy": 5.5})
    ink = [float((1 - imread(path)[..., :3]).sum()) for path in (one, two)]
    assert 0 < ink[0] < ink[1]
