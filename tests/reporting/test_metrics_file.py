"""Metrics files as a run leaves them, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.reporting.metrics_file import read_curve


def line(iteration: int) -> str:
    """One iteration."""
    return json.dumps({"iteration": iteration, "consumed_tokens": 2048 * iteration, "lm_loss": 1 / iteration})


def test_a_curve_is_read_with_every_digit(tmp_path: Path) -> None:
    """A line that is still being written is left out."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line(1)}\n{line(2)}\n{line(3)}\n{{"iteration": 4, "cons')
    curve = read_curve(path)
    assert curve.iterations == (1, 2, 3)
    assert curve.tokens == (2048, 4096, 6144)
    assert curve.losses == (1.0, 1 / 2, 1 / 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no iteration yet"),
        ("# notes\n", "does not hold the lines"),
        ("[1]\n", "does not hold the lines"),
        (None, "cannot be read"),
    ],
)
def test_other_files_are_a_users_mistake(tmp_path: Path, content: str | None, message: str) -> None:
    """One sentence, with the path."""
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_curve(path)
