"""A bad step does not end a run: updates left out, returns to a checkpoint, in every mode, against a plain loop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import faults, ranks
from tests.distributed.conftest import flags, kept
from tests.distributed.layouts import STATE_MODES, Mode
from tests.distributed.recipe import BATCH
from tests.distributed.reference import full_batch, reference_curve
from tinyllama_mcore.checkpoint import layout, manifest
from tinyllama_mcore.data import indexed

pytestmark = pytest.mark.faults

FAULTS = {
    "gradient": frozenset({3, 4, 5}),
    "refused": frozenset({7, 8}),
    "loss": frozenset({10, 11}),
}
"""Seven updates that must not be made."""
SKIPPED = frozenset(itertools.chain(*FAULTS.values()))


def tails(home: Path) -> str:
    """What the first rank said last."""
    return (home / "logs" / "rank0.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def without_skipped(corpus: list[str]) -> list[tuple[float, float]]:
    """The plain loop that leaves the same updates out."""
    return reference_curve(corpus, skipped=SKIPPED)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.layouts] * (mode.sharding == "zero3")) for mode in STATE_MODES],
    ids=str,
)
def test_updates_are_left_out_by_all(
    mode: Mode, without_skipped: list[tuple[float, float]], corpus: list[str], tmp_path: Path
) -> None:
    """NaN on one rank, or a loss refused: weights, moments and their count stay as they are on every rank."""
    argv = [*flags(mode, tmp_path, corpus), *kept(tmp_path), "--save-interval", "14"]
    codes = ranks.run(
        mode.world_size, faults.pretrain_with_bad_numbers, argv, mode.world_size - 1, FAULTS, logs=tmp_path / "logs"
    )
    assert codes == [0] * mode.world_size, tails(tmp_path)
    records = ranks.metrics(tmp_path / "metrics.jsonl")
    assert {i for i, record in enumerate(records) if record["skipped"]} == SKIPPED
    for i, (record, (loss, norm)) in enumerate(zip(records, without_skipped, strict=True)):
        if i not in FAULTS["loss"]:
            assert abs(record["lm_loss"] - loss) <= 2e-6, i
        if i not in SKIPPED:
            assert abs(record["grad_norm"] - norm) <= 1e-5 * norm, i
    state = manifest.read(layout.find(tmp_path / "checkpoints")).state
    assert (state.updates, state.iteration, state.skipped_in_a_row) == (7, 14, 0)
    assert [event.iteration - 1 for event in state.events] == sorted(SKIPPED)
    assert records[8]["skip_reason"] == state.events[4].reason == "told to"


@pytest.mark.parametrize("mode", [Mode(sharding=name) for name in ("zero1", "zero3", "fsdp")], ids=str)
def test_a_streak_goes_back_past_its_samples(mode: Mode, corpus: list[str], tmp_path: Path) -> None:
    """Three in a row from iteration 9 on: the checkpoint of iteration 5 goes on with the samples of iteration 12."""
    size = BATCH["global_batch_size"]
    argv = [*flags(mode, tmp_path, corpus), *kept(tmp_path), "--save-interval", "5", "--max-skipped-in-a-row", "3"]
    argv += ["--keep-latest", "1"]  # the save of iteration 10 is in the streak, and must not cost that of 5
    codes = ranks.run(2, faults.pretrain_on_poison, argv, 8 * size, 11 * size, logs=tmp_path / "logs")
    assert codes == [0, 0], tails(tmp_path)
    expected = reference_curve(corpus, samples_of=lambda i: full_batch(size * (i if i < 5 else i + 6)))
    records = ranks.metrics(tmp_path / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, 15))
    for record, (loss, norm) in zip(records, expected, strict=True):
        assert abs(record["lm_loss"] - loss) <= 2e-6
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm
    assert [record["rollbacks"] for record in records] == [0] * 5 + [1] * 9
    state = manifest.read(layout.find(tmp_path / "checkpoints")).state
    assert [event.kind for event in state.events] == ["skipped"] * 3 + ["rolled back"]
    assert (state.events[-1].first_sample, state.events[-1].end_sample) == (5 * size, 11 * size)
    assert state.consumed_samples == 20 * size
    assert "back to iteration 5; samples 40 to 87 are skipped" in (tmp_path / "logs" / "rank0.log").read_text()


@pytest.mark.parametrize("case", ["leaving is due at the checkpoint", "fewer are allowed than were skipped"])
def test_a_streak_over_two_jobs_goes_back(case: str, corpus: list[str], tmp_path: Path) -> None:
    """The second job rolls back to iteration 4 and trains on: it neither leaves there nor counts past its limit."""
    size = BATCH["global_batch_size"]
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path), "--save-interval", "4"]
    argv += ["--data-path-from", "6", corpus[3]]
    first, second = {
        "leaving is due at the checkpoint": (["--exit-interval", "4"], ["--exit-interval", "4"]),
        "fewer are allowed than were skipped": (["--exit-interval", "9"], []),
    }[case]
    for number, more in enumerate((first, [*second, "--max-skipped-in-a-row", "3"])):
        logs = tmp_path / f"logs{number}"
        assert ranks.run(1, faults.pretrain_on_poison, [*argv, *more], 4 * size, 10 * size, logs=logs) == [0]
    state = manifest.read(layout.find(tmp_path / "checkpoints")).state
    assert state.iteration == (8 if second else BATCH["train_iters"])
    assert [event.kind for event in state.events].count("rolled back") >= 1
    assert state.skipped_in_a_row == 0
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    blends = [event for event in events if event.get("event") == "blend"]  # told again where a rollback dropped it
    assert [(event["iteration"], event["first_sample"]) for event in blends] == [(5, 6 * size)]


def test_a_run_that_leaves_right_after_a_rollback_keeps_it(corpus: list[str], tmp_path: Path) -> None:
    """What follows steps over the same samples: the curve is that of the run that nobody asked."""
    size = BATCH["global_batch_size"]
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path), "--save-interval", "5"]
    argv += ["--max-skipped-in-a-row", "3", "--keep-latest", "1"]
    poison = 8 * size, 11 * size
    assert ranks.run(2, faults.pretrain_on_poison_and_leave, argv, *poison, logs=tmp_path / "logs") == [0, 0]
    state = manifest.read(layout.find(tmp_path / "checkpoints")).state
    assert (state.iteration, state.consumed_samples) == (5, 11 * size), tails(tmp_path)
    assert [event.kind for event in state.events] == ["skipped"] * 3 + ["rolled back"]
    assert ranks.run(2, faults.pretrain_on_poison, argv, *poison, logs=tmp_path / "logs") == [0, 0]
    expected = reference_curve(corpus, samples_of=lambda i: full_batch(size * (i if i < 5 else i + 6)))
    records = ranks.metrics(tmp_path / "metrics.jsonl")
    for record, (loss, _) in zip(records, expected, strict=True):
        assert abs(record["lm_loss"] - loss) <= 2e-6
    assert [record["rollbacks"] for record in records] == [0] * 5 + [1] * 9


def test_rollbacks_count_over_jobs_that_leave(corpus: list[str], tmp_path: Path) -> None:
    """Bad samples without end, and a job that is preempted at each rollback: the fourth ends it as it would in one."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path), "--save-interval", "5"]
    argv += ["--max-skipped-in-a-row", "2"]
    for code in (0, 0, 0, 1):
        assert ranks.run(1, faults.pretrain_on_poison_and_leave, argv, 56, 10**9, logs=tmp_path / "logs") == [code]
    assert "the run has rolled back to iteration 5 before, 3 times" in tails(tmp_path)


def test_an_id_that_one_rank_alone_draws_is_told(corpus: list[str], tmp_path: Path) -> None:
    """By that rank, in one message with the document; it ends with 1, and a launcher ends the rest."""
    with indexed.PairWriter(tmp_path / "foreign", np.dtype(np.uint16)) as pair:
        for document in range(120):  # rank 1 draws number 77 in iteration 4, rank 0 never
            pair.add(np.full(40, 600 if document == 77 else 5, dtype=np.uint16), np.array([40], dtype=np.int32))
    argv = list(flags(Mode(sharding="zero1"), tmp_path, corpus))
    at = argv.index("--data-path") + 1
    tokenizer = json.loads(Path(corpus[1]).with_suffix(".json").read_text())["tokenizer_model"]
    argv[at : at + 4] = [str(tmp_path / "foreign"), "--tokenizer-model", tokenizer]
    first, second = ranks.start(2, ranks._pretrain, argv, logs=tmp_path / "logs")
    second.join(60)
    first.kill()
    told = (tmp_path / "logs" / "rank1.log").read_text()
    assert second.exitcode == 1, told[-2000:]
    assert "Traceback" not in told and told.count("error: ") == 1
    assert "document 77 of " in told and "holds token id 600, but the vocabulary is 0 to 508" in told


def test_a_run_beyond_repair_ends(corpus: list[str], tmp_path: Path) -> None:
    """Bad samples without end: three returns to the same checkpoint, then one message and exit code 1."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), *kept(tmp_path), "--save-interval", "5"]
    argv += ["--max-skipped-in-a-row", "2"]
    codes = ranks.run(2, faults.pretrain_on_poison, argv, 56, 10**9, logs=tmp_path / "logs")
    assert codes == [1, 1]
    assert "the run has rolled back to iteration 5 before, 3 times" in tails(tmp_path)
    assert "Traceback" not in tails(tmp_path)


@pytest.mark.parametrize("saves", [False, True])
def test_a_streak_without_a_checkpoint_ends(saves: bool, corpus: list[str], tmp_path: Path) -> None:
    """Nothing to go back to: told, with the reason of the last one."""
    argv = [*flags(Mode(sharding="zero2"), tmp_path, corpus), "--max-skipped-in-a-row", "2"]
    argv += kept(tmp_path) if saves else ()
    codes = ranks.run(2, faults.pretrain_on_poison, argv, 24, 10**9, logs=tmp_path / "logs")
    assert codes == [1, 1]
    assert "loss nan is not finite; there is no earlier checkpoint to roll back to" in tails(tmp_path)
    assert ("checkpoints holds no finished checkpoint" in tails(tmp_path)) == saves
