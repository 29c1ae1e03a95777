"""A user's mistakes: one message each, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.evaluation.conftest import RIGHT
from tinyllama_mcore.evaluation import command

REPOSITORY = Path(__file__).resolve().parents[2]


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a command that has to be refused says."""
    capsys.readouterr()
    assert command.main([str(word) for word in argv]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "one of the arguments --load --checkpoints is required"),
        (("--load", "{run}", "--checkpoints", "{run}"), "not allowed with argument"),
        (("--checkpoints", "{run}", "--iteration", "3"), "--iteration goes with --load"),
        (("--load", "{run}", "--png", "a.png"), "--png goes with --checkpoints"),
        (("--load", "{run}", "--watch"), "--watch goes with --checkpoints"),
        (("--load", "{run}", "--again"), "--again does nothing without --output"),
        (("--load", "{run}", "--tasks", ","), "--tasks ',' names no task: give table2, table3"),
        (("--load", "{run}", "--device", "cuda:99"), "--device cuda:99 is not on this machine; it has: cpu"),
        (("--load", "{run}", "--include-path", "{run}/none"), "none is no directory"),
        (("--load", "{run}", "--iteration", "7"), "no finished checkpoint of iteration 7; finished ones: 0"),
        (("--load", "{home}/none"), "none holds no model: neither checkpoints of a run"),
        (("--load", "{tasks}"), "holds no model: neither checkpoints of a run (iter_.../manifest.json) nor a Hugging"),
        (("--checkpoints", "{tasks}"), "holds no finished checkpoint"),
    ],
)
def test_flags_and_directories(
    argv: tuple[str, ...], words: str, run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contradictions, and directories with no model."""
    given = [word.format(run=run, tasks=tasks, home=tmp_path) for word in argv]
    assert words in refused(capsys, *given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("runs_code", "task runs_code runs code that the model wrote, on this machine and as you: give --confirm-run-"),
        ("no_data", "task no_data cannot be loaded: Unable to find"),
        ("too_long", "too_long cannot be evaluated: Invalid configuration: requested max tokens to generate (128)"),
        ("no_metric", "task hellaswag has no metric acc_norm, which the paper's table shows; it has: acc,none"),
    ],
)
def test_tasks_of_ones_own(
    task: str, words: str, run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code without leave, no data, longer answers than the model has positions, and another metric than the paper's."""
    text = (tasks / "hellaswag.yaml").read_text()
    metrics = text[text.index('"metric_list"') :]
    files = {
        "runs_code": (tasks / "runs_code.yaml").read_text(),
        "too_long": (tasks / "writes.yaml").read_text().replace('"writes"', '"too_long"').replace(": 12", ": 128"),
        "no_data": text.replace('"hellaswag"', '"no_data"').replace("questions.jsonl", "gone.jsonl"),
        "no_metric": text.replace(metrics, '"metric_list": [{"metric": "acc"}]}'),
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.yaml").write_text(files[task])
    name = "hellaswag" if task == "no_metric" else task
    flags = ("--load", run, "--tasks", name, "--include-path", tmp_path / "own", "--no-verify", "--device", "cpu")
    assert words in refused(capsys, *flags)


def test_code_runs_where_it_may(run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same task with leave."""
    flags = ["--tasks", "runs_code", "--include-path", str(tasks), "--no-verify", "--device", "cpu"]
    assert command.main(["--load", str(run), *flags, "--confirm-run-unsafe-code"]) == 0
    assert f"runs_code {100 * RIGHT:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_names_that_are_no_task(run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name, and a tag; a group is a task, and its questions are those of its tasks."""
    flags = ("--load", run, "--include-path", tasks, "--no-verify", "--device", "cpu", "--tasks")
    said = refused(capsys, *flags, "hellaswga")
    assert "has no task of that name, and --include-path adds none; did you mean hellaswag?" in said
    assert "--tasks a_tag is a tag, which has no score of its own: name its tasks, tagged" in refused(
        capsys, *flags, "a_tag"
    )
    assert command.main([*map(str, flags), "both"]) == 0
    assert "both acc, 0-shot, 8 questions" in capsys.readouterr().out


def test_a_task_of_the_papers_is_asked_with_its_number_of_examples(
    run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task whose file says no number: three, as Table 3 has it."""
    flags = ["--tasks", "bbh_fewshot,writes", "--include-path", str(tasks), "--no-verify", "--device", "cpu"]
    assert command.main(["--load", str(run), *flags]) == 0
    said = capsys.readouterr().out
    assert "bbh_fewshot exact_match, 3-shot, 4 questions" in said
    assert "writes exact_match, 0-shot, 4 questions" in said


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    """Unless another is named."""
    assert command.device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert command.device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["lm_eval", "accelerate"])
def test_an_absent_library(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, name, None)
    said = refused(capsys, "--load", run)
    assert (
        f"{name.replace('_', '-')} is not installed for {sys.executable}, and evaluation needs it: pip install" in said
    )


def test_a_file_of_scores_that_is_something_else(
    run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another file, a metrics file, and scores of other settings are left as they are."""
    flags = ("--load", run, "--tasks", "piqa", "--include-path", tasks, "--no-verify", "--device", "cpu", "--output")
    for text in ('{"iteration": 1}\n', '{"iteration": 1, "event": "start"}\n', "thesis", "[]\n", "\udcff\n"):
        file = tmp_path / "file.jsonl"
        file.write_bytes(text.encode(errors="surrogateescape"))
        assert "holds something else than scores, in line 1: name a new file" in refused(capsys, *flags, file)
        assert file.read_bytes() == text.encode(errors="surrogateescape")
    assert command.main([*map(str, flags), str(tmp_path / "scores.jsonl"), "--limit", "2"]) == 0
    assert "holds scores with limit 2, and None is asked for" in refused(capsys, *flags, tmp_path / "scores.jsonl")


@pytest.mark.slow
def test_the_script_and_what_cannot_be_fetched(run: Path, tmp_path: Path) -> None:
    """By the script itself, which lies beside no package `evaluate`: lm-eval looks for Hugging Face's metric there."""
    script = [sys.executable, str(REPOSITORY / "tools" / "evaluate.py"), "--load", str(run), "--tasks", "humaneval"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*script, "--confirm-run-unsafe-code"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "task humaneval cannot be loaded: Couldn't find a module script" in done.stderr
    assert "code_eval" in done.stderr
    assert "without a network, fetch it elsewhere first" in done.stderr
    assert "Traceback" not in done.stderr
