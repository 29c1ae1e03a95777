"""The paper's Figure 2: the score of each task over the tokens that a run has seen. Needs matplotlib.

Horizontal lines are the paper's figures for other models and for its own. Neighbours: `scores` has the points, `paper`
the lines; `reporting.plot` draws the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllama_mcore.evaluation.paper import OURS, Column, printed
from tinyllama_mcore.evaluation.scores import Evaluated

if TYPE_CHECKING:
    from matplotlib.artist import Artist

ACROSS = 4
"""Panels in a row."""
STYLES: Mapping[str, str] = {OURS: "-", "Pythia-1.4B": "--", "Pythia-1.0B": ":", "OPT-1.3B": "-."}
"""Model of the paper -> how its line is drawn."""


def draw(models: Sequence[Evaluated], columns: Sequence[Column], output: Path) -> None:
    """One panel a task, written to `output` as PNG; its directory is created.

    Args:
        models: checkpoints in order, each with its tokens.
        columns: tasks, a panel each.
        output: path of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    across = min(ACROSS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(3.2 * across, 2.9 * down + 0.5), layout="constrained")
    labels: dict[str, Artist] = {}
    for index, column in enumerate(columns):
        axes = figure.add_subplot(down, across, index + 1)
        points = [(model.tokens or 0, model.scores[column.task]) for model in models if column.task in model.scores]
        (line,) = axes.plot(
            [tokens for tokens, _ in points], [100 * score.value for _, score in points], marker="o", markersize=3
        )
        labels.setdefault("this run", line)
        for name, value in printed(column.task):
            labels.setdefault(f"{name} (paper)", axes.axhline(value, color="0.4", linestyle=STYLES[name], linewidth=1))
        metric = points[-1][1].metric.partition(",")[0] if points else column.metric
        axes.set(title=column.title, ylabel=f"{metric} (%)", xlabel="tokens seen")
        axes.xaxis.set_major_formatter(EngFormatter(places=None))
        axes.grid(alpha=0.25)
    figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=len(labels), frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(output))
