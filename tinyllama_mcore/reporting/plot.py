"""The loss curve of one or more runs as a picture. Needs matplotlib, which the extra [dev] brings.

Neighbours: `metrics_file` reads the curves, `thinning` thins them; `page` shows more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from tinyllama_mcore.config import packages
from tinyllama_mcore.reporting.metrics_file import Metrics
from tinyllama_mcore.reporting.thinning import envelope, stretches

MAX_POINTS = 1000
"""Points drawn of one curve: means over equal stretches of iterations, in a band from the least to the largest."""


def plot_loss(
    runs: Sequence[Metrics], output: str | Path, *, title: str, levels: Mapping[str, float] | None = None
) -> None:
    """Draw loss over tokens seen, and write it to `output` as PNG.

    Args:
        runs: the runs, each with its legend entry.
        output: path of the picture; its directory is created.
        title: stands over the picture.
        levels: horizontal lines to compare with, legend entry -> nats a token.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    packages.require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        starts = stretches(len(run), MAX_POINTS)
        tokens = envelope(run.columns["consumed_tokens"], starts).mean
        losses = envelope(run.columns["lm_loss"], starts)
        (line,) = axes.plot(tokens, losses.mean, linewidth=1.6, label=run.label)
        if len(starts) < len(run):
            axes.fill_between(tokens, losses.least, losses.largest, color=line.get_color(), alpha=0.2, linewidth=0)
    for (label, level), style in zip((levels or {}).items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(level, color="0.35", linestyle=style, linewidth=1.2, label=f"{label}: {level:.2f}")
    axes.set(title=title, xlabel="tokens seen", ylabel="training loss (nats a token)")
    axes.xaxis.set_major_formatter(EngFormatter(places=None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(output))
