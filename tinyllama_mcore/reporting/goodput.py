"""Where the wall time of a run went, from its first process to the last line of its metrics file.

Goodput is the share of iterations that count. Neighbours: `metrics_file` reads, `tables` and `page` show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tinyllama_mcore.reporting.metrics_file import Metrics, number

TRAINING = "training"
PARTS: Mapping[str, str] = {
    TRAINING: "iterations that count",
    "validation": "evaluations",
    "saves": "training waited for a checkpoint",
    "lost": "iterations done again after a restart or a rollback, with their evaluations and saves",
    "start": "from a process's begin until it could train: imports, data, weights",
    "stopped": "between the last line of one process and the begin of the next",
    "other": "all else, e.g. a last save after the last line, or work that a kill ended before it was written",
}
"""Part of the wall time -> what it is."""


def wall_time(run: Metrics) -> dict[str, float] | None:
    """Seconds of each of `PARTS`; None where the file does not say when the run began: an earlier version wrote it."""
    starts = run.of("start")
    if not starts or not math.isfinite(began := number(starts[0], "time") - number(starts[0], "start_s")):
        return None
    times = [*run.columns["time"].tolist(), *(number(event, "time") for event in run.events)]
    whole = max(time for time in times if math.isfinite(time)) - began
    found = {
        TRAINING: float(np.nansum(run.columns["iteration_time_s"])),
        "validation": _sum(run, "validation", "seconds"),
        "saves": _sum(run, "save", "seconds"),
        "lost": _sum(run, "start", "lost_s") + _sum(run, "rollback", "lost_s"),
        "start": _sum(run, "start", "start_s"),
        "stopped": _sum(run, "start", "stopped_s"),
    }
    return {**found, "other": max(whole - sum(found.values()), 0.0)}


def goodput(run: Metrics) -> float | None:
    """Share of the wall time in iterations that count, from 0 to 1; None where it is not known."""
    parts = wall_time(run)
    whole = sum(parts.values()) if parts else 0.0
    return parts[TRAINING] / whole if parts and whole > 0 else None


def _sum(run: Metrics, kind: str, name: str) -> float:
    values = (number(event, name) for event in run.of(kind))
    return sum(value for value in values if math.isfinite(value))
