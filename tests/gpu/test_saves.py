"""How long training waits for a checkpoint of the 1.1B model: 13.2 GB of weights and moments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.gpu.conftest import Case, tell, train

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

CASE = Case(config="zero1", flags="--global-batch-size 16 --micro-batch-size 8")


def waited(home: Path, interval: int, *more: str) -> float:
    """Seconds that training waited for the second of two saves, `interval` iterations apart."""
    saves = ("--save", str(home / "checkpoints"), "--save-interval", str(interval), "--keep-latest", "1")
    train(CASE, home, *saves, "--exit-interval", str(2 * interval), *more)
    told = re.findall(r"checkpoint (?:written|copied) in ([\d.]+) s", (home / "rank0.log").read_text())
    assert len(told) == 2
    return float(told[1])


def test_a_save_in_the_background_is_waited_for_until_it_is_copied(tmp_path: Path) -> None:
    """At most 5 % of what a blocking one takes; far enough apart that the first is written before the second begins."""
    blocking = waited(tmp_path / "blocking", 3)
    copied = waited(tmp_path / "background", 60, "--async-save")
    tell("saves", blocking_s=blocking, background_s=copied)
    assert copied <= 0.05 * blocking
