"""A metrics file as a long run leaves it: its lines are the loggers' own, its figures are drawn."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.training.test_loggers import record


def write(path: Path, iterations: int, *, spike: int) -> None:
    """So many iterations, with a loss of 50 nats at `spike`, skipped updates, evaluations and saves."""
    draw = np.random.default_rng(0)
    noise, norms = draw.normal(scale=0.05, size=iterations), draw.exponential(size=iterations)
    base = asdict(record(1))
    lines = []
    for iteration in range(1, iterations + 1):
        skipped, blend = iteration % 5003 == 0, {"data/text": 3 * iteration, "data/code": iteration}
        loss = 50.0 if iteration == spike else 2 + 8 / math.sqrt(1 + iteration / 100) + noise[iteration - 1]
        base |= {
            "iteration": iteration,
            "consumed_tokens": 2048 * iteration,
            "consumed_by_dataset": blend,
            "lm_loss": math.nan if skipped else loss,
            "grad_norm": norms[iteration - 1],
            "time": 1.7e9 + iteration,
            "skipped": skipped,
            "skip_reason": "loss nan is not finite" if skipped else None,
        }
        lines.append(json.dumps(base))
        event = {"iteration": iteration, "time": 1.7e9 + iteration, "seconds": 1.0}
        if iteration % 500 == 0:
            each = {name: {"loss": loss + shift} for name, shift in (("data/text", 0.1), ("data/code", -0.1))}
            lines.append(json.dumps({**event, "event": "validation", "loss": loss, "by_dataset": each}))
        if iteration % 100 == 0:
            lines.append(json.dumps({**event, "event": "save"}))
    path.write_text("\n".join(lines) + "\n")
