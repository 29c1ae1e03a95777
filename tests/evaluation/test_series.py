"""Many checkpoints: each evaluated once, whatever becomes of them meanwhile, while a run trains too."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ranks
from tinyllama_mcore.checkpoint import layout, manifest
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.evaluation import command, models, scores
from tinyllama_mcore.hf.export import ExportJob, export

TRAINED = 3
"""Iterations of the run, each with a checkpoint."""


def trainer(save: Path, corpus: list[str], tokenizer: Path, *more: str) -> list[str]:
    """The command line of a small run."""
    return [
        "--deepspeed_config", str(ranks.CHECKOUT / "ds_configs/zero1.json"), "--recipe", "tinyllama-debug",
        "--data-path", *corpus, "--tokenizer-model", str(tokenizer), "--save", str(save), "--save-interval", "1",
        "--seq-length", "32", "--micro-batch-size", "2", "--global-batch-size", "4", "--lr-warmup-iters", "0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus: list[str], corpus_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three iterations saved."""
    home = tmp_path_factory.mktemp("trained")
    argv = trainer(home / "run", corpus, corpus_tokenizer, "--train-iters", str(TRAINED))
    ranks.pretrain(argv, world_size=1, logs=home / "logs")
    return home / "run"


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to do things to."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def flags(run: Path, tasks: Path, output: Path, *more: str) -> list[str]:
    """The tool's command line."""
    asked = ["--tasks", "piqa", "--include-path", str(tasks), "--device", "cpu", "--no-verify"]
    return ["--checkpoints", str(run), *asked, "--output", str(output), *more]


def lines(output: Path) -> list[dict[str, Any]]:
    """The file of scores."""
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_second_run_continues(
    mine: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, in order; then only a new task, or all if asked; the figure also has what was removed."""
    from matplotlib.image import imread

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    output, picture = tmp_path / "new" / "scores.jsonl", tmp_path / "figure.png"
    assert command.main(flags(mine, tasks, output, "--png", str(picture))) == 0
    assert [(line["iteration"], line["event"], line["consumed_tokens"]) for line in lines(output)] == [
        (number, "evaluation", number * 4 * 32) for number in range(1, TRAINED + 1)
    ]
    assert next(iter(lines(output)[0])) == "iteration"
    ink = float((1 - imread(picture)[..., :3]).sum())
    shutil.rmtree(mine / "iter_0000001")
    with output.open("a") as file:
        file.write('{"iteration": 4, "ev')  # a killed run's
    capsys.readouterr()
    assert command.main(flags(mine, tasks, output, "--png", str(picture), "--overwrite")) == 0
    assert capsys.readouterr().out.count("known  ") == TRAINED - 1
    assert len(lines(output)) == TRAINED
    assert float((1 - imread(picture)[..., :3]).sum()) == pytest.approx(ink)
    assert command.main([*flags(mine, tasks, output), "--tasks", "piqa,boolq"]) == 0
    assert [list(line["scores"]) for line in lines(output)] == [["piqa"]] * TRAINED + [["piqa", "boolq"]] * (
        TRAINED - 1
    )
    assert command.main([*flags(mine, tasks, output), "--again"]) == 0
    assert len(lines(output)) == TRAINED + 2 * (TRAINED - 1)
    assert not list(tmp_path.glob("tinyllama-evaluate-*"))


def test_a_taken_picture_is_refused(
    mine: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is evaluated."""
    (tmp_path / "mine.png").write_text("precious")
    assert command.main(flags(mine, tasks, tmp_path / "scores.jsonl", "--png", str(tmp_path / "mine.png"))) == 2
    assert "mine.png exists: name a new file, or give --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_damaged_one_is_told_and_the_others_evaluated(
    mine: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed byte in one, a manifest cut short in another: exit code 1; by itself, 2."""
    shard = next((mine / "iter_0000002").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    cut = mine / "iter_0000003" / "manifest.json"
    cut.write_text(cut.read_text()[:-20])
    output = tmp_path / "scores.jsonl"
    assert command.main(flags(mine, tasks, output)) == 1
    said = capsys.readouterr().err
    assert "does not match its checksum in the manifest" in said
    assert "manifest.json is not a manifest" in said
    assert [line["iteration"] for line in lines(output)] == [1]
    assert command.main(["--load", str(mine), *flags(mine, tasks, output)[2:]]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["before", "while"])
def test_one_that_is_removed_is_told(
    moment: str,
    mine: Path,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `--keep-latest` removes them: after the listing, or between two tensors. No traceback, exit code 0."""
    first = mine / "iter_0000001"
    read = CheckpointReader.tensor if moment == "while" else CheckpointReader.__init__

    def removes(reader: CheckpointReader, argument: Any) -> Any:  # noqa: ANN401
        shutil.rmtree(first, ignore_errors=True)
        return read(reader, argument)

    monkeypatch.setattr(CheckpointReader, read.__name__, removes)
    output = tmp_path / "scores.jsonl"
    assert command.main(flags(mine, tasks, output)) == 0
    said = capsys.readouterr().err
    assert f"skipped      {first} was removed while it was read: nothing is known of it" in said
    assert "Traceback" not in said
    assert [line["iteration"] for line in lines(output)] == [2, 3]


@pytest.mark.slow
def test_an_iteration_that_is_written_again_is_evaluated_again(mine: Path, tasks: Path, tmp_path: Path) -> None:
    """After a rollback an iteration has other weights: its older score is not shown for it."""
    output = tmp_path / "scores.jsonl"
    assert command.main(flags(mine, tasks, output)) == 0
    (before,) = [model for model in models.listed(mine) if model.iteration == 2]
    first, second = mine / "iter_0000001", mine / "iter_0000002"
    saved = manifest.read(first)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    state = dataclasses.replace(saved.state, iteration=2)
    (second / "manifest.json").write_text(manifest.to_text(dataclasses.replace(saved, state=state)))
    replaced = pytest.raises(models.Gone, match="iter_0000002 was replaced while it was read")
    with replaced, models.merged(before, models.Merging(verify=False)):
        pass
    assert command.main(flags(mine, tasks, output)) == 0
    assert [line["iteration"] for line in lines(output)] == [1, 2, 3, 2]
    assert lines(output)[3]["scores"] == lines(output)[0]["scores"]
    curve = scores.opened(output, {}).curve(mine)
    assert [point.identity for point in curve] == [model.identity for model in models.listed(mine)]
    assert scores.opened(output, {}).curve(tmp_path) == []


@pytest.mark.slow
def test_a_running_job_is_watched_to_its_last_iteration(
    corpus: list[str], corpus_tokenizer: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun before the job's directory is there; the job keeps two checkpoints and never waits."""
    save, output = tmp_path / "run", tmp_path / "scores.jsonl"
    argv = trainer(save, corpus, corpus_tokenizer, "--train-iters", "40", "--save-interval", "4", "--keep-latest", "2")
    job = ranks.start(1, ranks._pretrain, argv, logs=tmp_path / "logs")
    assert command.main(flags(save, tasks, output, "--watch")) == 0
    job[0].join(60)
    assert job[0].exitcode == 0, (tmp_path / "logs" / "rank0.log").read_text()
    seen = [line["iteration"] for line in lines(output)]
    assert seen == sorted(set(seen))
    assert seen[-1] == 40
    assert len(seen) >= 2
    told = capsys.readouterr()
    assert f"watching     {save} until the run's last checkpoint" in told.out
    assert "Traceback" not in told.err
    assert layout.iterations(save) == [36, 40]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_is_ended_by_a_signal(
    number: signal.Signals, corpus: list[str], corpus_tokenizer: Path, tasks: Path, tmp_path: Path
) -> None:
    """A run that stopped before its last iteration may go on, so it is waited for: 130, and what was found is kept."""
    save, output = tmp_path / "run", tmp_path / "scores.jsonl"
    argv = trainer(save, corpus, corpus_tokenizer, "--train-iters", "9", "--exit-interval", "2")
    ranks.pretrain(argv, world_size=1, logs=tmp_path / "logs")
    (watch,) = ranks.start(1, command.main, flags(save, tasks, output, "--watch"), logs=tmp_path / "watch")
    begin = time.monotonic()
    while not output.exists() or len(lines(output)) < 2:
        assert watch.is_alive() and time.monotonic() - begin < 100, (tmp_path / "watch" / "rank0.log").read_text()
        time.sleep(0.1)
    os.kill(watch.pid or 0, number)
    watch.join(20)
    said = (tmp_path / "watch" / "rank0.log").read_text()
    assert watch.exitcode == 130, said
    assert "interrupted  what was found is kept in --output" in said
    assert "Traceback" not in said


def test_a_hugging_face_directory_is_known_by_its_files(run: Path, tasks: Path, tmp_path: Path) -> None:
    """Evaluated once, and again when a file of it changed."""
    model, output = tmp_path / "hf", tmp_path / "scores.jsonl"
    export(ExportJob(load=run, output=model, verify=False))
    argv = ["--load", str(model), *flags(run, tasks, output)[2:]]
    for _ in range(2):
        assert command.main(argv) == 0
    (line,) = lines(output)
    assert (line["iteration"], line["consumed_tokens"], line["model"]) == (None, None, str(model))
    (model / "README.md").write_text("changed")
    assert command.main(argv) == 0
    assert len(lines(output)) == 2
