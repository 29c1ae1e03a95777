"""The figures of a page's charts, as JSON that its script draws: thinned, rounded, with a place for each on every axis.

Neighbours: `thinning` thins, `happenings` gives the marks, `page` puts it all together, `template/page.js` draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyllama_mcore.config.paths import told_apart
from tinyllama_mcore.reporting.happenings import KINDS, happenings
from tinyllama_mcore.reporting.metrics_file import Metrics, losses_by_dataset, number
from tinyllama_mcore.reporting.thinning import envelope, smoothed, stretches

MOST_POINTS, FEWEST_POINTS = 1200, 200
"""Points of a curve: so many over all runs, but of each at least so many."""
SPAN = 100
"""The smoothed line forgets over this part of the run, one of so many."""
MOST_MARKS = 300
"""Marks of one kind and run that are drawn."""


class Chart(NamedTuple):
    """One chart of a column."""

    column: str
    title: str
    unit: str
    scale: float = 1.0
    """What a value is multiplied by."""
    smooth: bool = False
    """Drawn with a smoothed line."""
    can_be_log: bool = False
    """Whether its axis may be logarithmic."""


CHARTS = (
    Chart("lm_loss", "Loss", "nats a token", smooth=True, can_be_log=True),
    Chart("lr", "Learning rate", ""),
    Chart("grad_norm", "Gradient norm before clipping", "", smooth=True, can_be_log=True),
    Chart("tokens_per_s_per_gpu", "Throughput of one process", "tokens/s"),
    Chart("peak_memory_gib", "Peak memory of the fullest rank", "GiB"),
    Chart("data_wait_s", "Wait for data in an iteration", "ms", scale=1000.0),
)


def figures(runs: Sequence[Metrics], names: Sequence[str]) -> dict[str, Any]:
    """All that the script draws, under these names."""
    points = max(MOST_POINTS // len(runs), FEWEST_POINTS)
    drawn = [_run(run, name, points) for run, name in zip(runs, names, strict=True)]
    charts = [
        {"id": c.column, "title": c.title, "unit": c.unit, "log": c.can_be_log}
        for c in CHARTS
        if any(c.column in run["series"] for run in drawn)
    ]
    return {"charts": charts, "runs": drawn, "kinds": KINDS}


def longest_stretch(runs: Sequence[Metrics]) -> int:
    """Iterations that the points of a page stand for at most."""
    points = max(MOST_POINTS // len(runs), FEWEST_POINTS)
    return max(-(-len(run) // points) for run in runs)


def _run(run: Metrics, name: str, points: int) -> dict[str, Any]:
    starts = stretches(len(run), points)
    ends = np.append(starts[1:], len(run)) - 1
    iterations = run.columns["iteration"]
    series = {}
    for chart in CHARTS:
        values = run.columns[chart.column] * chart.scale
        if not np.isfinite(values).any():
            continue
        thin = envelope(values, starts)
        series[chart.column] = {"mean": _rounded(thin.mean)}
        if len(starts) < len(run):
            series[chart.column] |= {"least": _rounded(thin.least), "largest": _rounded(thin.largest)}
        if chart.smooth:
            series[chart.column]["smooth"] = _rounded(smoothed(values, max(len(run) / SPAN, 1.0))[ends])
    return {
        "name": name,
        "x": _axes(run, iterations[ends]),
        "first": iterations[starts].astype(int).tolist(),
        "series": series,
        "validation": _validation(run),
        "blend": _blend(run, starts, ends),
        "marks": list(_marks(run)),
    }


def _axes(run: Metrics, at: np.ndarray) -> dict[str, list[float | None]]:
    """Where iterations stand on each horizontal axis; one between two lines of the file stands between them."""
    iterations = run.columns["iteration"]
    hours = np.nancumsum(run.columns["iteration_time_s"]) / 3600
    return {
        "iteration": [int(i) for i in at],
        "tokens": _rounded(np.interp(at, iterations, run.columns["consumed_tokens"]), digits=8),
        "hours": _rounded(np.interp(at, iterations, hours), digits=8),
    }


def _validation(run: Metrics) -> dict[str, Any] | None:
    """Losses of evaluations, the whole one first; thinned to the last of each stretch."""
    found = run.of("validation")
    if not found:
        return None
    starts = stretches(len(found), MOST_MARKS)
    kept = [found[end] for end in np.append(starts[1:], len(found)) - 1]
    datasets = list(dict.fromkeys(prefix for event in kept for prefix, _ in losses_by_dataset(event)))
    each = [dict(losses_by_dataset(event)) for event in kept]
    named = zip(datasets, told_apart(datasets), strict=True)
    lines = {name: [losses.get(prefix, math.nan) for losses in each] for prefix, name in named}
    return {
        "x": _axes(run, np.array([number(event, "iteration") for event in kept])),
        "loss": _rounded([number(event, "loss") for event in kept]),
        "datasets": [{"name": name, "loss": _rounded(losses)} for name, losses in lines.items()],
    }


def _blend(run: Metrics, starts: np.ndarray, ends: np.ndarray) -> list[dict[str, Any]]:
    """Of each dataset, its share of the samples of each stretch."""
    if not run.samples:
        return []
    before = np.maximum(starts - 1, 0)
    drawn = {name: samples[ends] - np.where(starts > 0, samples[before], 0.0) for name, samples in run.samples.items()}
    whole = np.sum(list(drawn.values()), axis=0)
    names = told_apart(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            {"name": name, "share": _rounded(samples / whole)}
            for name, samples in zip(names, drawn.values(), strict=True)
        ]


def _marks(run: Metrics) -> Iterator[dict[str, Any]]:
    """Where something happened; of a kind that is frequent, spread evenly. Validations are points of the loss."""
    found = happenings(run)
    for kind in KINDS:
        of_kind = [happening.iteration for happening in found if happening.kind == kind]
        if not of_kind or kind in ("start", "validation"):
            continue
        kept = np.array(of_kind)[stretches(len(of_kind), MOST_MARKS)]
        yield {"kind": kind, "x": _axes(run, kept)}


def _rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """So many significant digits; null for what is not finite, which JSON does not know."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
