"""`--log-straggler` names the rank that was slowed down, in every engine and along every axis.

In the curve of a run, and in the duration of its iterations, both ranks are as slow: each waits for the other.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.distributed import faults, ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode

VICTIM, SLEEP_S, ITERATIONS = 1, 0.04, 3
MODES = [
    *(Mode(sharding=sharding) for sharding in ("zero0", "zero1", "zero2", "zero3", "fsdp")),
    Mode(sharding="zero1", tp=2, dp=1),
    Mode(sharding="fsdp", tp=2, sp=True, dp=1),
    Mode(sharding="zero2", cp=2, dp=1),
    Mode(sharding="zero1", pp=2, dp=1),
    Mode(sharding="fsdp", pp=2, vpp=2, dp=1),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """A directory of the metrics of each mode, and of a run that is slow in its data."""
    home = tmp_path_factory.mktemp("stragglers")
    modes = {**{str(mode): mode for mode in MODES}, faults.SLOW_DATA: MODES[1]}
    more = ("--log-straggler", "--log-interval", "1", "--exit-interval", str(ITERATIONS))
    given = [
        (name, [*flags(mode, home / name, corpus), "--metrics-file", str(home / name / "metrics.jsonl"), *more])
        for name, mode in modes.items()
    ]
    done, logs = home / "done", home / "logs"
    done.touch()
    codes = ranks.run(2, faults.train_on_a_slow_rank, given, done, VICTIM, SLEEP_S, logs=logs, timeout=300)
    assert codes == [0, 0], ranks._tails(logs)
    return home


def _last(runs: Path, name: str) -> dict:
    first, *rest = ranks.metrics(runs / name / "metrics.jsonl")
    assert "straggler" not in first, "the first iteration compiles"
    assert len(rest) == ITERATIONS - 1
    return rest[-1]["straggler"]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_rank_that_sleeps_in_its_layers_is_named(mode: Mode, runs: Path) -> None:
    """By at least what it slept in each pass; the other one's own time has none of it."""
    found = _last(runs, str(mode))
    assert (found["rank"], found["host"]) == (VICTIM, socket.gethostname())
    assert found["pass_s"] >= SLEEP_S
    assert found["pass_s"] - found["median_pass_s"] > SLEEP_S / 2, "the rest is what a busy machine does to either"
    assert found["over_median"] == pytest.approx(found["pass_s"] / found["median_pass_s"] - 1)


def test_the_rank_that_sleeps_in_its_data_is_named(runs: Path) -> None:
    """With what it waited in an iteration."""
    found = _last(runs, faults.SLOW_DATA)
    assert (found["data_rank"], found["data_host"]) == (VICTIM, socket.gethostname())
    assert found["data_wait_s"] >= SLEEP_S


def test_the_console_says_so(runs: Path) -> None:
    """A line under that of the interval, with the figures of the metrics file."""
    name = str(MODES[0])
    log = (runs / "logs" / "rank0.log").read_text()
    of_run = log.partition(f"==== {name}\n")[2].partition("====")[0]
    found = _last(runs, name)
    measured = f"{1e3 * found['pass_s']:,.2f} ms a pass, {found['over_median']:.1%} over the median"
    assert f"slowest rank {VICTIM} ({found['host']}): {measured}" in " ".join(of_run.split()), of_run
    assert json.loads((runs / "done").read_text().splitlines()[0]) == name
