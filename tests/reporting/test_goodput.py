"""Where the wall time of a run went, by hand on a file of few lines and on a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyllama_mcore.reporting.goodput import PARTS, goodput, wall_time
from tinyllama_mcore.reporting.metrics_file import read


def iteration(number: int, time: float) -> dict[str, object]:
    """One of two seconds."""
    return {
        "iteration": number,
        "consumed_tokens": number,
        "lm_loss": 1.0,
        "iteration_time_s": 2.0,
        "time": time,
    }


LINES = (
    {"iteration": 0, "event": "start", "time": 110.0, "start_s": 10.0, "lost_s": 0.0, "stopped_s": None},
    iteration(1, 112.0),
    {"iteration": 1, "event": "validation", "time": 113.0, "loss": 1.0, "seconds": 1.0},
    {"iteration": 1, "event": "save", "time": 116.0, "seconds": 3.0},
    # an iteration of 2 s, and a process that ends at 118: both gone; nobody there until 130
    {"iteration": 1, "event": "start", "time": 135.0, "start_s": 5.0, "lost_s": 2.0, "stopped_s": 12.0},
    iteration(2, 137.0),
    {"iteration": 2, "event": "rollback", "time": 142.0, "lost_s": 4.0},
    iteration(3, 144.0),
)


def test_by_hand(tmp_path: Path) -> None:
    """From second 100 to 144; one second was between a rollback and its line."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    parts = {"training": 6, "validation": 1, "saves": 3, "lost": 6, "start": 15, "stopped": 12, "other": 1}
    assert wall_time(read(path)) == parts
    assert list(parts) == list(PARTS)
    assert goodput(read(path)) == pytest.approx(6 / 44)


def test_a_real_run_adds_up(real_run: Path) -> None:
    """The parts are the time from the first process's begin to the last line, and little of it is unknown."""
    run = read(real_run)
    first = run.of("start")[0]
    whole = run.events[-1]["time"] - (first["time"] - first["start_s"])
    parts = wall_time(run)
    assert parts is not None
    assert sum(parts.values()) == pytest.approx(whole, rel=0.01)
    assert all(parts[name] > 0 for name in ("training", "validation", "saves", "lost", "start"))
    assert parts["other"] < 0.2 * whole


def test_an_earlier_version_does_not_say(tmp_path: Path) -> None:
    """No start, no wall time."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "consumed_tokens": 8, "lm_loss": 2.5}\n')
    assert wall_time(read(path)) is None and goodput(read(path)) is None
