"""SIGKILL at random moments: what goes on is, bit for bit, the run that was never killed.

`make test-faults` kills a hundred runs, the suite a few. Moments are drawn from the number of the case: a failure can
be tried again.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.conftest import Job, flags, kept
from tests.distributed.layouts import Mode
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.reader import CheckpointReader

pytestmark = pytest.mark.faults

WAYS = (
    (Mode(sharding="zero1"), False),
    (Mode(sharding="zero1"), True),
    (Mode(sharding="zero3"), True),
    (Mode(sharding="fsdp"), True),
    (Mode(sharding="zero2", pp=2, dp=1), False),
)
"""Layouts, and whether saves run in the background."""
SAME = ("iteration", "lm_loss", "grad_norm", "lr", "consumed_samples")
SAVE_INTERVAL = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for every two of `--kills`."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", range(metafunc.config.getoption("--kills") // 2))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Callable[[int], tuple[Job, float]]:
    """The run of a row of WAYS that nobody killed, and the seconds that it took."""
    done: dict[int, tuple[Job, float]] = {}

    def run(way: int) -> tuple[Job, float]:
        if way not in done:
            mode, in_background = WAYS[way]
            home = tmp_path_factory.mktemp("unbroken")
            argv = (*flags(mode, home, corpus), "--save-interval", str(SAVE_INTERVAL), "--keep-latest", "2")
            job = Job(home=home, argv=(*argv, *["--async-save"] * in_background))
            begin = time.monotonic()
            ranks.pretrain([*job.argv, *kept(job.home)], world_size=2, logs=home / "logs")
            done[way] = job, time.monotonic() - begin
        return done[way]

    return run


def killed(job: Job, chance: random.Random, latest: float) -> None:
    """Start `job`, kill one rank within `latest` seconds, and the other, as a launcher does, a moment later."""
    processes: list[multiprocessing.Process] = ranks.start(
        2, ranks._pretrain, [*job.argv, *kept(job.home)], logs=job.home / "logs"
    )
    time.sleep(chance.uniform(0, latest))
    for victim in chance.sample(processes, 2):
        victim.kill()
        time.sleep(chance.uniform(0, 0.5))
    for process in processes:
        process.join()


def logged(job: Job) -> int:
    """The last iteration in the metrics file."""
    return job.metrics[-1]["iteration"] if (job.home / "metrics.jsonl").exists() and job.metrics else 0


def test_a_killed_run_goes_on(case: int, unbroken: Callable[[int], tuple[Job, float]], tmp_path: Path) -> None:
    """Killed at any moment, killed again at any moment of what it goes on with, then left alone."""
    chance = random.Random(case)
    way = case % len(WAYS)
    whole, seconds = unbroken(way)
    job = Job(home=tmp_path, argv=whole.argv)
    for _ in range(2):
        killed(job, chance, seconds)
        newest = max(layout.iterations(job.save), default=0)
        in_flight = SAVE_INTERVAL * WAYS[way][1]
        assert newest >= (logged(job) - 1) // SAVE_INTERVAL * SAVE_INTERVAL - in_flight
    told = ranks.pretrain([*job.argv, *kept(job.home)], world_size=2, logs=tmp_path / "logs")
    for name in SAME:
        assert [r[name] for r in job.metrics] == [r[name] for r in whole.metrics], name
    one, other = (CheckpointReader(layout.find(path)) for path in (whole.save, job.save))
    assert one.manifest.state == other.manifest.state
    for key in sorted(one.keys()):
        assert torch.equal(one.tensor(key), other.tensor(key)), key
    there = set(job.save.iterdir())
    if "nothing left" in told:  # killed between its last save and what that would have removed: none comes after it
        there -= {layout.folder(job.save, iteration) for iteration in layout.iterations(job.save)[:-2]}
        there -= set(layout.unfinished(job.save))
    assert {path.name for path in there} == {path.name for path in whole.save.iterdir()}
