"""Scores are lm-eval's own, to the last digit, whatever layout saved the checkpoint; and they are right by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from tests.distributed import ranks
from tests.evaluation.conftest import RIGHT, learned
from tinyllama_mcore.evaluation import command, paper
from tinyllama_mcore.evaluation.harness import DTYPES
from tinyllama_mcore.hf.export import ExportJob, export
from tinyllama_mcore.hf.importing import import_hf

NAMES = [column.task for column in paper.TABLES["table2"].columns]
UNCHANGED = ("--lr", "1e-30", "--min-lr", "0", "--lr-warmup-iters", "0", "--train-iters", "1")
"""Flags of a run whose one update is too small to change a weight: it saves what it loaded."""


def scored(run: Path, tasks: Path, dtype: str, output: Path) -> dict[str, Any]:
    """What the tool writes of the newest checkpoint: task -> score."""
    flags = ["--tasks", "table2,writes,text", "--include-path", str(tasks), "--dtype", dtype, "--device", "cpu"]
    assert command.main(["--load", str(run), *flags, "--output", str(output), "--no-verify"]) == 0
    (line,) = output.read_text().splitlines()
    return json.loads(line)["scores"]


def directly(run: Path, tasks: Path, dtype: str, merged: Path) -> dict[str, Any]:
    """The same by lm-eval itself on what the exporter writes: task -> its row of results."""
    export(ExportJob(load=run, output=merged, dtype=dtype, verify=False))
    return lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={merged},dtype={DTYPES[dtype]}",
        tasks=[*NAMES, "writes", "text"],
        num_fewshot=0,
        batch_size=8,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )["results"]


@pytest.mark.parametrize(("tokenizer", "dtype"), [("small", "bf16"), ("llama2", "fp32")])
def test_scores_are_those_of_lm_eval_and_right(
    tokenizer: str, dtype: str, run: Path, tasks: Path, checkout: Path, tmp_path: Path
) -> None:
    """Every metric of every task, with the suite's tokenizer and with Llama 2's; known by hand where answers count."""
    if tokenizer == "llama2":
        model = checkout.parent / "shared/data/llama2_tokenizer.model"
        if not model.exists():
            pytest.skip("Llama-2's tokenizer.model is not at hand")
        run = tmp_path / "run"
        import_hf(learned(model, tmp_path / "llama"), run, verify=False)
    ours, theirs = scored(run, tasks, dtype, tmp_path / "scores.jsonl"), directly(run, tasks, dtype, tmp_path / "hf")
    assert list(ours) == [*NAMES, "writes", "text"]
    for task, score in ours.items():
        assert score["metrics"] == {key: theirs[task][key] for key in score["metrics"]}
        assert score["metric"] in score["metrics"]
    answered = {task: score for task, score in ours.items() if task != "text"}
    assert {score["value"] for score in answered.values()} == {RIGHT}
    assert {task: score["metric"] for task, score in answered.items()} == {
        **dict.fromkeys(NAMES, "acc_norm,none"),
        **dict.fromkeys(("winogrande", "boolq"), "acc,none"),
        "writes": "exact_match,none",
    }
    assert {score["samples"] for score in ours.values()} == {4}
    assert ours["text"]["value"] not in (0.0, RIGHT)


@pytest.mark.slow
def test_layouts_of_one_checkpoint_score_alike(
    run: Path, tasks: Path, corpus: list[str], corpus_tokenizer: Path, tmp_path: Path
) -> None:
    """The same weights saved by two tensor-parallel ranks and by two of ZeRO-1: every digit of every metric."""
    found = []
    for name, flags in (("tensor", ["--tensor-model-parallel-size", "2"]), ("data", [])):
        save = tmp_path / name
        json_ = str(ranks.CHECKOUT / "ds_configs/zero1.json")
        argv = [
            "--deepspeed_config",
            json_,
            "--load",
            str(run),
            "--save",
            str(save),
            "--data-path",
            *corpus,
            *UNCHANGED,
        ]
        argv += [
            "--tokenizer-model",
            str(corpus_tokenizer),
            "--seq-length",
            "32",
            "--micro-batch-size",
            "2",
            "--global-batch-size",
            "8",
        ]
        ranks.pretrain([*argv, *flags], world_size=2, logs=tmp_path / "logs")
        found.append(scored(save, tasks, "fp32", tmp_path / f"{name}.jsonl"))
    assert len(list((tmp_path / "tensor").glob("iter_0000001/*.safetensors"))) == 2
    assert found[0] == found[1] == scored(run, tasks, "fp32", tmp_path / "imported.jsonl")
