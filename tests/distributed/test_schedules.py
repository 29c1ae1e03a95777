"""Schedules of the learning rate in real runs: WSD stopped before its decay, and decays from one stable checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.distributed.conftest import Job, flags, kept
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.reader import CheckpointReader

ZERO1 = Mode(sharding="zero1")
STABLE = 8
"""An iteration in which the rate is at its largest under every schedule here."""
WSD = ("--lr-decay-style", "WSD", "--lr-wsd-decay-style", "minus_sqrt", "--lr-wsd-decay-iters")
CONSTANT = ("--lr-decay-style", "constant", "--train-iters", str(STABLE))


def trained(home: Path, corpus: list[str], *more: str) -> tuple[Job, str]:
    """Two ranks train with these flags; what they keep, and what the first said."""
    job = Job(home=home, argv=(*flags(ZERO1, home, corpus), *kept(home), *more))
    return job, ranks.pretrain(job.argv, world_size=2, logs=home / "logs")


def assert_equal(one: Job, other: Job) -> None:
    """The last checkpoints of two jobs hold the same bits."""
    left, right = (CheckpointReader(layout.find(job.save)) for job in (one, other))
    assert left.manifest.state == right.manifest.state
    assert set(left.keys()) == set(right.keys())
    for key in sorted(left.keys()):
        assert torch.equal(left.tensor(key), right.tensor(key)), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Job:
    """Fourteen iterations under WSD, whose decay begins at `STABLE`."""
    decay = str(BATCH["train_iters"] - STABLE)
    job, told = trained(tmp_path_factory.mktemp("whole"), corpus, *WSD, decay)
    assert f"constant up to {STABLE}, then minus_sqrt to 0.0001 at {BATCH['train_iters']}" in told
    assert [record["lr"] for record in job.metrics[2 : STABLE + 1]] == [1e-3] * (STABLE - 1)
    assert job.metrics[STABLE + 1]["lr"] < 1e-3
    return job


def test_wsd_stopped_before_its_decay_goes_on_as_if_it_had_not_been(
    uninterrupted: Job, corpus: list[str], tmp_path: Path
) -> None:
    """Bit for bit, in weights and moments."""
    decay = str(BATCH["train_iters"] - STABLE)
    trained(tmp_path, corpus, *WSD, decay, "--exit-interval", str(STABLE - 2))
    half, told = trained(tmp_path, corpus, *WSD, decay)
    assert "changed" not in told
    assert_equal(half, uninterrupted)


def test_decays_of_two_lengths_begin_at_one_stable_checkpoint(
    uninterrupted: Job, corpus: list[str], tmp_path: Path
) -> None:
    """Without a word to allow it; the one is bit for bit the run that was under WSD from the start."""
    stable, _ = trained(tmp_path / "stable", corpus, *CONSTANT)
    before = {path: path.stat().st_mtime_ns for path in stable.save.rglob("*")}
    branches = {}
    for decay in (3, BATCH["train_iters"] - STABLE):
        home = tmp_path / str(decay)
        more = ("--load", str(stable.save), *WSD, str(decay), "--train-iters", str(STABLE + decay))
        branches[decay], told = trained(home, corpus, *more, "--exit-interval", str(STABLE + 2))
        assert "in the checkpoint" in told and "changes the rate after warm-up" in told
        assert f"of iteration {STABLE + 2}, the first that differs" in told
        _, told = trained(home, corpus, *more)  # the same command: from where it was, not from where it began
        assert f"resuming from it, and not from --load {stable.save}" in told and "renamed" not in told
        assert layout.iterations(branches[decay].save) == [STABLE + 2, STABLE + decay]
        assert branches[decay].metrics[0]["lr"] == 1e-3
    assert before == {path: path.stat().st_mtime_ns for path in stable.save.rglob("*")}
    assert_equal(branches[BATCH["train_iters"] - STABLE], uninterrupted)
    short, long = (branches[decay].metrics[2]["lr"] for decay in branches)
    assert short < long


def test_a_decay_that_would_have_begun_before_its_checkpoint_is_refused(corpus: list[str], tmp_path: Path) -> None:
    """Exit code 2, and the rates that differ."""
    stable, _ = trained(tmp_path / "stable", corpus, *CONSTANT)
    home = tmp_path / "branch"
    more = ("--load", str(stable.save), *WSD, "4", "--train-iters", str(STABLE + 2), *kept(home))
    assert ranks.run(1, ranks._pretrain, [*flags(ZERO1, home, corpus), *more], logs=home / "logs") == [2]
    told = (home / "logs" / "rank0.log").read_text()
    assert f"Iteration {STABLE} had the rate 1.000e-03 and would have had" in told
    shutil.rmtree(home)
