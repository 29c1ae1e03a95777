"""The loss curve of one or more runs as a picture. Needs matplotlib, which the extra [dev] brings.

Neighbours: `metrics_file` reads the curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from tinyllama_mcore.reporting.metrics_file import Curve

MAX_POINTS = 1000
"""Points drawn of one curve; a longer one is drawn as means over equal runs of iterations."""


def thin(values: Sequence[float], *, points: int = MAX_POINTS) -> np.ndarray:
    """At most `points` means over consecutive values; shorter input comes back as it is."""
    array = np.asarray(values, dtype=np.float64)
    width = -(-len(array) // points)
    starts = np.arange(0, len(array), width)
    return np.add.reduceat(array, starts) / np.diff([*starts, len(array)])


def plot_loss(
    curves: Sequence[Curve], output: str | Path, *, title: str, levels: Mapping[str, float] | None = None
) -> None:
    """Draw loss over tokens seen, and write it to `output` as PNG.

    Args:
        curves: the runs, each with its legend entry.
        output: path of the picture; its directory is created.
        title: stands over the picture.
        levels: horizontal lines to compare with, legend entry -> nats a token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(thin(curve.tokens), thin(curve.losses), linewidth=1.6, label=curve.label)
    for (label, level), style in zip((levels or {}).items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(level, color="0.35", linestyle=style, linewidth=1.2, label=f"{label}: {level:.2f}")
    axes.set(title=title, xlabel="tokens seen", ylabel="training loss (nats a token)")
    axes.xaxis.set_major_formatter(EngFormatter(places=None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(output))
