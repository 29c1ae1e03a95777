"""A real run for the reports: two processes, stopped and resumed under another layout, an update left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import faults, ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.layouts import Mode

SKIPPED, STOPPED, RESUMED, END = 3, 6, 4, 12
"""Iterations: whose update is left out, where the first job ends, where the second goes on, where it ends."""


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """Its metrics file. The second job goes back to an earlier checkpoint than the newest, so that work is lost."""
    home = tmp_path_factory.mktemp("watched")
    more = ["--split", "80,20,0", "--eval-interval", "2", "--eval-iters", "2", "--save-interval", "2"]
    first = [*flags(Mode(sharding="zero1"), home, corpus), *kept(home), *more, "--exit-interval", str(STOPPED)]
    refused = {"refused": frozenset({SKIPPED - 1})}  # faults counts from 0
    codes = ranks.run(2, faults.pretrain_with_bad_numbers, first, 0, refused, logs=home / "first")
    assert codes == [0, 0], (home / "first" / "rank0.log").read_text()[-3000:]
    second = [*flags(Mode(sharding="zero1", tp=2, dp=1), home, corpus), *kept(home), *more]
    ranks.pretrain(
        [*second, "--iteration", str(RESUMED), "--exit-interval", str(END)], world_size=2, logs=home / "second"
    )
    return home / "metrics.jsonl"
