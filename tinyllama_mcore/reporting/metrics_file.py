"""Reads what a run wrote with `--metrics-file`, whoever wrote it: the file is the contract, not our loggers.

Neighbours: `plot` draws it; `training.loggers` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of one run, an entry an iteration."""

    label: str
    """What a legend calls the run: the path of its file."""
    iterations: tuple[int, ...]
    """Optimizer updates done."""
    tokens: tuple[int, ...]
    """Tokens that the run had seen by then."""
    losses: tuple[float, ...]
    """Mean cross entropy in nats a token."""


def read_curve(path: str | Path) -> Curve:
    """Read the loss curve of a metrics file; a line that is still being written is skipped.

    Raises:
        ConfigError: the file cannot be read, holds something else, or holds no whole line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        columns = [[row[name] for row in rows] for name in ("iteration", "consumed_tokens", "lm_loss")]
    except OSError as error:
        raise ConfigError(f"metrics file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"metrics file {path} does not hold the lines that --metrics-file writes") from error
    if not rows:
        raise ConfigError(f"metrics file {path} holds no iteration yet")
    iterations, tokens, losses = (tuple(column) for column in columns)
    return Curve(label=str(path), iterations=iterations, tokens=tokens, losses=losses)
