"""Going on under another command than the checkpoint's, by real runs: what is told, what is refused, what is kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import Job, kept
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH, RECIPE, SAVED
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config.paths import TRACKER
from tinyllama_mcore.config.schema import OptimizerConfig
from tinyllama_mcore.optim.schedule import learning_rate

ZERO1 = Mode(sharding="zero1")
ITERATION = SAVED
"""Of the checkpoint that most of these go on from."""
SAME = ("iteration", "lm_loss", "grad_norm", "lr", "consumed_by_dataset")
KEEP = "--use-checkpoint-opt_param-scheduler"


@pytest.fixture
def half(job_of: Callable[[Mode], Job], tmp_path: Path) -> Job:
    """The first half of a run, with its metrics."""
    job = job_of(ZERO1)
    made = Job(home=tmp_path, argv=(*job.argv, *kept(tmp_path)))
    shutil.copytree(layout.folder(job.save, ITERATION), layout.folder(made.save, ITERATION))
    return made


def ran(job: Job, *more: str) -> tuple[int, str]:
    """Exit code and output of one rank."""
    logs = job.home / "logs"
    (code,) = ranks.run(1, ranks._pretrain, [*job.argv, *more], logs=logs)
    told = (logs / "rank0.log").read_text()
    assert "Traceback" not in told
    return code, told


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr", "1.1e-3"),
        ("--min-lr", "2e-4"),
        ("--lr-warmup-iters", "3"),
        ("--train-iters", "30"),
    ],
    ids=lambda flags: flags[0],
)
def test_another_schedule_is_refused_unless_told_to(flags: tuple[str, str], half: Job) -> None:
    """Exit code 2 before any process group; told to, the table and the new rate; or the checkpoint's rates."""
    code, told = ran(half, *flags)
    assert code == 2
    assert "was trained with another learning-rate schedule" in told
    assert "engine  " not in told
    code, told = ran(half, *flags, "--override-schedule", "--exit-interval", "11")
    assert (code, flags[0][2:].replace("-", "_") in told, "of this command" in told) == (0, True, True)
    shutil.rmtree(layout.folder(half.save, 11))
    code, told = ran(half, *flags, KEEP, "--exit-interval", "11")
    assert code == 0
    (record,) = half.metrics
    expected = learning_rate(ITERATION, OptimizerConfig(**RECIPE["optimizer"]), BATCH["train_iters"])
    assert record["lr"] == expected


def test_another_batch_is_told_and_the_samples_go_on(half: Job) -> None:
    """Twice the batch: the next sample is the one that follows."""
    code, told = ran(half, "--global-batch-size", "16", "--exit-interval", "11")
    assert code == 0
    assert re.search(r"^ +global_batch_size +8 +16 +samples continue in order; ", told, flags=re.MULTILINE)
    assert [record["consumed_samples"] for record in half.metrics] == [ITERATION * 8 + 16]


def test_a_planned_blend_is_the_change_at_that_iteration(job_of: Callable[[Mode], Job], tmp_path: Path) -> None:
    """One command from the first iteration on, stopped and resumed too, and a change by hand: the same bits."""
    whole = job_of(ZERO1).argv
    text, code = (whole[whole.index("--data-path") + place] for place in (2, 4))
    later = ("0.1", text, "0.9", code)
    jobs = {name: Job(home=tmp_path / name, argv=(*whole, *kept(tmp_path / name))) for name in ("one", "two", "three")}
    for job in jobs.values():
        job.home.mkdir()
    planned = ("--data-path-from", "5", *later)
    assert ran(jobs["one"], *planned, "--exit-interval", "9")[0] == 0
    assert ran(jobs["two"], *planned, "--exit-interval", "7")[0] == 0
    exit_code, told = ran(jobs["two"], *planned, "--exit-interval", "9")
    assert (
        exit_code,
        f"data         after iteration 5 (sample 40): 0.1000 from {text}, 0.9000 from {code}" in told,
    ) == (0, True)
    assert ran(jobs["three"], "--exit-interval", "5")[0] == 0
    assert ran(jobs["three"], "--data-path", *later, "--allow-data-change", "--exit-interval", "9")[0] == 0
    for name in ("one", "two"):
        lines = map(json.loads, (jobs[name].home / "metrics.jsonl").read_text().splitlines())
        (event,) = (line for line in lines if line.get("event") == "blend")
        found = (event["iteration"], event["first_sample"], event["shares"])
        assert found == (6, 40, {text: pytest.approx(0.1), code: pytest.approx(0.9)}), name
    assert "a planned blend begins" not in told
    one, two, three = ([[r[name] for name in SAME] for r in job.metrics] for job in jobs.values())
    assert len(one) == 9
    assert one == two == three
    drawn = jobs["one"].metrics[-1]["consumed_by_dataset"]
    assert drawn == jobs["three"].metrics[-1]["consumed_by_dataset"] and drawn[code] > 0.9 * 32
    exit_code, told = ran(jobs["one"], "--exit-interval", "10")
    assert (exit_code, "changed its blend after iteration 5: repeat its --data-path-from. Give" in told) == (2, True)


def test_a_plan_counts_iterations_where_the_batch_changes(half: Job) -> None:
    """The next iterations are twice as large; the blend changes after the one that was named, and that is printed."""
    text, code = (half.argv[half.argv.index("--data-path") + place] for place in (2, 4))
    planned = ("--data-path-from", str(ITERATION + 1), code, "--global-batch-size", "16")
    exit_code, told = ran(half, *planned, "--exit-interval", str(ITERATION + 2))
    assert exit_code == 0
    line = f"data         after iteration {ITERATION + 1} (sample {ITERATION * 8 + 16}): 1.0000 from {code}"
    assert line in told
    before, after = (record["consumed_by_dataset"] for record in half.metrics)
    assert before[text] == after[text] > 0.6 * sum(before.values()) and after[code] == before[code] + 16


def test_a_plan_that_is_left_out_or_late_is_told(half: Job) -> None:
    """What is still to come may be left out, with a note; what would have begun before is refused, with the reason."""
    code = half.argv[half.argv.index("--data-path") + 4]
    ahead = ("--data-path-from", str(ITERATION + 3), code)
    assert ran(half, *ahead, "--exit-interval", str(ITERATION + 1))[0] == 0
    exit_code, told = ran(half, "--exit-interval", str(ITERATION + 2))
    assert exit_code == 0
    assert f"note         the checkpoint's run had planned another blend after iteration {ITERATION + 3}" in told
    exit_code, told = ran(half, "--data-path-from", str(ITERATION - 3), code)
    assert exit_code == 2
    assert f"--data-path-from {ITERATION - 3} would have begun before iteration {ITERATION + 2}" in told
    assert f"give {ITERATION + 2} or later. Give" in told


def test_a_finished_run_says_so(job_of: Callable[[Mode], Job], tmp_path: Path) -> None:
    """Exit code 0, so that a scheduler does not start it for ever; nothing is touched. Shorter is a mistake: 2."""
    job = job_of(ZERO1)
    shutil.copytree(job.save, tmp_path / "checkpoints")
    shutil.copy(job.home / "metrics.jsonl", tmp_path)
    done = Job(home=tmp_path, argv=(*job.argv, *kept(tmp_path)))
    before = done.metrics
    assert ranks.run(2, ranks._pretrain, list(done.argv), logs=tmp_path / "logs") == [0, 0]
    told = (tmp_path / "logs" / "rank0.log").read_text()
    assert "nothing left" in told and "--train-iters" in told
    assert "engine  " not in told
    code, told = ran(done, "--train-iters", "12")
    assert code == 2
    assert "--train-iters 12 is below iteration 14" in told and "--iteration 10" in told
    assert done.metrics == before


def test_from_zero_keeps_the_old_run_beside(half: Job) -> None:
    """--no-load: the old checkpoint is set aside, so the next start goes on from the new ones; metrics are refused."""
    (half.home / "metrics.jsonl").write_text(json.dumps({"iteration": 1}) + "\n")
    code, told = ran(half, "--no-load", "--exit-interval", "2")
    assert code == 2 and "--overwrite" in told
    code, told = ran(half, "--no-load", "--exit-interval", "2", "--overwrite")
    assert code == 0 and "renamed      to" in told
    assert sorted(path.name for path in half.save.glob("*iter_*")) == ["abandoned-iter_0000010", "iter_0000002"]
    code, told = ran(half, "--exit-interval", "4")
    assert code == 0 and "iter_0000002, iteration 2" in told
    assert [record["iteration"] for record in half.metrics] == [1, 2, 3, 4]


def test_a_run_killed_before_its_first_checkpoint_starts_again(half: Job) -> None:
    """The same command, from zero, over its own metrics: a scheduler's restart. Another --save is another run."""
    fresh = Job(home=half.home, argv=tuple(word.replace("checkpoints", "fresh") for word in half.argv))
    assert ran(fresh, "--exit-interval", "2")[0] == 0
    shutil.rmtree(layout.folder(half.home / "fresh", 2))
    (half.home / "fresh" / TRACKER).unlink()
    assert ran(fresh, "--exit-interval", "2")[0] == 0
    other = Job(home=half.home, argv=tuple(word.replace("checkpoints", "other") for word in half.argv))
    code, told = ran(other, "--exit-interval", "2")
    assert code == 2 and "that another run wrote" in told
    assert len(half.metrics) == 2
