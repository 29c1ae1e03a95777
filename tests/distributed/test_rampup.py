"""Batch-size warm-up in real runs: Hugging Face's curve over Megatron's sizes, in any layout, from any iteration on."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from tests.config.test_batch_sizes import megatrons
from tests.distributed import faults, ranks
from tests.distributed.conftest import Job, flags, kept
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH
from tests.distributed.reference import reference_curve
from tinyllama_mcore.checkpoint import layout, manifest
from tinyllama_mcore.checkpoint.reader import CheckpointReader

RAMP = (4, 4, 50)
FULL = 16
FLAGS = ("--global-batch-size", str(FULL), "--rampup-batch-size", *map(str, RAMP))
LAST = BATCH["train_iters"]
PLACES = list(itertools.islice(megatrons(FULL, RAMP), LAST + 1))
"""(samples consumed before, size) of each iteration, by Megatron-core."""
IN_THE_RAMP = 5
"""An iteration whose size is neither the first nor the last."""
LAYOUTS = [
    Mode(sharding="zero1", dp=1),
    Mode(sharding="zero1"),
    Mode(sharding="zero2", tp=2, sp=True, dp=1),
    Mode(sharding="zero3"),
    Mode(sharding="fsdp"),
    Mode(sharding="fsdp-grad-op"),
    Mode(sharding="zero1", pp=2, dp=1),
]


def trained(home: Path, mode: Mode, corpus: list[str], *more: str) -> tuple[Job, str]:
    """A run with these flags; what it keeps, and what its first rank said."""
    job = Job(home=home, argv=(*flags(mode, home, corpus), *kept(home), *FLAGS, *more))
    return job, ranks.pretrain(job.argv, world_size=mode.world_size, logs=home / "logs")


@pytest.fixture(scope="module")
def reference(corpus: list[str]) -> list[tuple[float, float]]:
    """The curve of Hugging Face's model over the same samples, as many at a time as Megatron-core says."""
    return reference_curve(corpus, samples_of=lambda i: range(PLACES[i][0], sum(PLACES[i])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Job:
    """Two data ranks, to the end, with a checkpoint at each iteration."""
    home = tmp_path_factory.mktemp("whole")
    job, told = trained(home, LAYOUTS[1], corpus, "--save-interval", "1", "--eval-interval", "7", "--eval-iters", "1")
    smaller = sum(size < FULL for _, size in PLACES)
    first = f"iteration {smaller + 1} is the first of {FULL}"
    assert f"ramp         from 4 sequences by 4 at a time over 50 samples; {first}" in told
    assert f"length       {LAST} iterations = {PLACES[LAST][0] * BATCH['seq_length']:,} tokens" in told
    return job


def assert_follows(job: Job, reference: list[tuple[float, float]], begin: int = 0) -> None:
    """Its metrics are the reference's from an iteration on."""
    records = job.metrics
    assert [record["iteration"] for record in records] == list(range(begin + 1, LAST + 1))
    for record, (loss, norm), (start, size) in zip(records, reference[begin:], PLACES[begin:], strict=False):
        assert abs(record["lm_loss"] - loss) <= 2e-6, record["iteration"]
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm, record["iteration"]
        assert (record["global_batch_size"], record["consumed_samples"]) == (size, start + size)
        tokens = size * BATCH["seq_length"]
        assert record["consumed_tokens"] == (start + size) * BATCH["seq_length"]
        assert sum(record["consumed_by_dataset"].values()) == start + size
        world = round(tokens / record["iteration_time_s"] / record["tokens_per_s_per_gpu"], 6)
        assert world in (1, 2)


def test_the_ramp_is_all_within_the_run() -> None:
    """Every size comes by, so what follows tries all of it."""
    assert {size for _, size in PLACES[:LAST]} == {4, 8, 12, 16}
    assert PLACES[IN_THE_RAMP][1] not in (RAMP[0], FULL)


@pytest.mark.parametrize("mode", LAYOUTS, ids=str)
def test_the_curve_is_that_of_hugging_face(
    mode: Mode, reference: list[tuple[float, float]], whole: Job, corpus: list[str], tmp_path: Path
) -> None:
    """In every layout, with the samples, tokens and rates of each iteration's own batch."""
    job = whole if mode == LAYOUTS[1] else trained(tmp_path, mode, corpus)[0]
    assert_follows(job, reference)


@pytest.mark.parametrize("iteration", [1, IN_THE_RAMP, 9])
def test_resume_in_the_ramp_is_bit_for_bit(iteration: int, whole: Job, corpus: list[str], tmp_path: Path) -> None:
    """At its begin, in its middle and at its end: losses, norms, weights and moments."""
    shutil.copytree(layout.folder(whole.save, iteration), layout.folder(tmp_path / "checkpoints", iteration))
    half, told = trained(tmp_path, LAYOUTS[1], corpus)
    assert "changed" not in told
    read = [line for line in told.splitlines() if " of samples from " in line]  # with epochs of the whole run
    assert len(read) == 2 and set(read) <= set((whole.home / "logs" / "rank0.log").read_text().splitlines())
    for name in ("iteration", "lm_loss", "grad_norm", "lr", "consumed_samples", "global_batch_size"):
        assert [r[name] for r in half.metrics] == [r[name] for r in whole.metrics[iteration:]], name
    one, other = (CheckpointReader(layout.find(job.save)) for job in (whole, half))
    assert one.manifest.state == other.manifest.state
    for key in sorted(one.keys()):
        assert torch.equal(one.tensor(key), other.tensor(key)), key


def test_another_layout_goes_on_in_the_ramp(
    whole: Job, reference: list[tuple[float, float]], corpus: list[str], tmp_path: Path
) -> None:
    """One process goes on from two ranks' checkpoint."""
    shutil.copytree(layout.folder(whole.save, IN_THE_RAMP), layout.folder(tmp_path / "checkpoints", IN_THE_RAMP))
    half, _ = trained(tmp_path, Mode(sharding="fsdp", tp=2, dp=1), corpus)
    assert_follows(half, reference, IN_THE_RAMP)


def test_a_rollback_does_not_ramp_twice(corpus: list[str], tmp_path: Path) -> None:
    """Two bad iterations: the run goes back past their samples, with the size that the next sample has."""
    argv = [*flags(LAYOUTS[1], tmp_path, corpus), *kept(tmp_path), *FLAGS, "--save-interval", "2"]
    argv += ["--max-skipped-in-a-row", "2"]
    bad = (PLACES[4][0], PLACES[6][0])
    assert ranks.run(2, faults.pretrain_on_poison, argv, *bad, logs=tmp_path / "logs") == [0, 0]
    after = [*PLACES[:4], *itertools.islice(megatrons(FULL, RAMP), 6, 6 + LAST - 4)]
    found = [
        (r["consumed_samples"] - r["global_batch_size"], r["global_batch_size"])
        for r in ranks.metrics(tmp_path / "metrics.jsonl")
    ]
    assert found == after
    state = manifest.read(layout.find(tmp_path / "checkpoints")).state
    assert state.consumed_samples == sum(after[-1])


def test_a_world_that_a_size_does_not_fit_is_refused(corpus: list[str], tmp_path: Path) -> None:
    """Exit code 2, before any process group."""
    argv = [*flags(LAYOUTS[1], tmp_path, corpus), "--global-batch-size", "16", "--micro-batch-size", "4"]
    argv += ["--rampup-batch-size", "4", "12", "50"]
    assert ranks.run(2, ranks._pretrain, argv, logs=tmp_path / "logs") == [2, 2]
    told = (tmp_path / "logs" / "rank0.log").read_text()
    assert "START and INCREMENT must be multiples of 8 = micro batch 4 x data parallel 2" in told
    assert "engine  " not in told
