"""tools/benchmark.py from end to end, in small: every kind of row, its files, refusals, failures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import ranks
from tinyllama_mcore.benchmarking import ours, peers, rows
from tinyllama_mcore.benchmarking.workload import FLOAT8_MIXED, FP32, MIXED, Measurement, workload_of
from tinyllama_mcore.commands.benchmark import main
from tinyllama_mcore.config import records

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "benchmark.py"
ZERO1 = str(REPOSITORY / "ds_configs" / "zero1.json")
SMALL = ("--micro-batch-size", "2", "--accumulation", "2", "--updates", "2", "--warmup", "1")
ON_GPU = workload_of("tinyllama-1.1b", on_gpu=True, batch=(8, 8), timed=(4, 10))


def benchmark(python: Path | str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The tool, run in `folder`; its rows' processes are started by the same `python`."""
    command = [str(python), str(TOOL), "--output", "out", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_floor_by_the_real_interpreter(tmp_path: Path) -> None:
    """One row of one process."""
    done = benchmark(sys.executable, tmp_path, "--rows", "floor", *SMALL)
    assert done.returncode == 0, done.stderr
    (floor,) = json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]
    assert floor["row"]["problem"] == "" and floor["row"]["tokens_per_s"] > 0


@pytest.mark.slow
def test_in_small(python: Path, tmp_path: Path) -> None:
    """The floor, this trainer with a profile, and peers: all measured in fp32, one table, JSON and figure."""
    keys = "floor,ours,litgpt,hf-liger,litgpt-float8"
    done = benchmark(python, tmp_path, "--rows", keys, "--config", ZERO1, "--profile", *SMALL)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    result = json.loads((out / "benchmark.json").read_text())
    floor, mine, litgpt, hugging_face, float8 = (each["row"] for each in result["rows"])
    assert {row["precision"] for row in (floor, mine, litgpt, hugging_face)} == {FP32}
    assert [row["problem"] for row in (floor, mine, hugging_face)] == ["", "", ""]
    assert min(row["tokens_per_s"] for row in (floor, mine, hugging_face)) > 0
    assert floor["parts_ms"]["attention backward"] > 0
    assert mine["name"] == "ours, zero1.json"
    installed = all(importlib.util.find_spec(package) for package in ("litgpt", "lightning", "torchmetrics"))
    assert (litgpt["tokens_per_s"] is not None) == installed
    assert installed or litgpt["problem"].startswith("not installed: litgpt")
    assert float8["problem"]
    assert (out / "benchmark.md").read_text() == done.stdout
    assert (out / "figure1.png").read_bytes().startswith(b"\x89PNG")
    profile = (out / "profile_0_zero1" / "iterations_4-4.txt").read_text()
    assert "idle" in profile
    assert "matrix products" in profile
    metrics = ranks.metrics(out / "logs" / "metrics_0_zero1.jsonl")
    assert len(metrics) == 4, "the profiled update is one more than those that count"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--rows", "flooor"), "did you mean floor"),
        (("--rows", ","), "names no row"),
        (("--updates", "0"), "--updates"),
        (("--nproc-per-node", "999"), "--nproc-per-node 999"),
        (("--config=--compile",), "must begin with a DeepSpeed JSON"),
        (("--config", "nothing.json"), "nothing.json: no such file"),
        (("--config", f"{ZERO1} --compil"), "--compil"),
        (("--config", f"{ZERO1} --train-iters 5"), "--train-iters is the same for every row"),
        (("--config", f"{ZERO1} --transformer-impl fused --compile"), "nothing to compile"),
        (("--config", ZERO1, "--config", ZERO1), "given twice"),
        (("--output", str(TOOL)), "not a directory"),
    ],
)
def test_refusals(
    flags: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake ends with 2 and one line before anything is measured or written."""
    monkeypatch.chdir(tmp_path)
    assert main(["--output", "out", *flags]) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert says in line
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_result_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another command measured stays, unless --overwrite is given."""
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "out" / "benchmark.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    only_missing = ["--output", "out", "--rows", "litgpt-float8", *SMALL]
    assert main(only_missing) == 2
    assert "holds benchmark.json already; name another directory, or give --overwrite" in capsys.readouterr().err
    assert kept.read_text() == "{}"
    assert main([*only_missing, "--overwrite"]) == 0
    assert json.loads(kept.read_text())["rows"][0]["row"]["problem"]


def plan(logs: Path) -> rows.Plan:
    """A plan for rows that are made by hand."""
    return rows.Plan(workload=ON_GPU, keys=(), configs=(), processes=1, logs=logs, timeout_minutes=0.1)


BEFORE = Measurement(name="a row", kind="peer", precision=MIXED)
FINE = f"print({json.dumps(json.dumps(records.to_plain(BEFORE) | {'tokens_per_s': 5.0}))})"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import json.nothing", "ModuleNotFoundError: No module named 'json.nothing'"),
        ("import sys; sys.exit('error: so it is')", "error: so it is"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        ("import time; time.sleep(60)", "given up after 0.1 minutes"),
        ("pass", "the process ended well and printed no measurement"),
        (f"{FINE}; print('bye')", ""),
    ],
)
def test_a_row_that_fails_says_why(code: str, problem: str, tmp_path: Path) -> None:
    """However a process ends, it is a row: with its figures, or with its last exception."""
    found = rows.measure(rows.Row(before=BEFORE, arguments=("-c", code)), 0, plan(tmp_path))
    assert found.problem == problem
    assert found.tokens_per_s == (None if problem else 5.0)


def test_the_launchers_words_are_not_the_reason() -> None:
    """Under torchrun the exception of a rank is told, not torchrun's own, which comes last."""
    text = (
        "[rank0]: Traceback (most recent call last):\n[rank0]: torch.OutOfMemoryError: CUDA out of memory.\n"
        "E1127 failed (exitcode: 1)\nTraceback (most recent call last):\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n"
    )
    assert rows.why(text) == "torch.OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("words", "processes", "sequences"),
    [
        ((ZERO1,), 1, 64),
        ((ZERO1,), 2, 128),
        ((ZERO1, "--tensor-model-parallel-size", "2"), 2, 64),
        ((ZERO1, "--tensor-model-parallel-size", "2"), 8, 256),
    ],
)
def test_every_rank_has_the_same_micro_batches(words: tuple[str, ...], processes: int, sequences: int) -> None:
    """8 x 8 of each data-parallel rank, whatever the layout; and the row's precision is that of its run."""
    row = ours.Ours(words=words, profile=None)
    run = ours.check(row, ON_GPU, processes)
    assert run.batch.global_batch_size == sequences
    assert run.num_micro_batches == 8
    assert ours.row(row, run).precision == MIXED
    narrow = ours.Ours(words=(*words, "--fp8-recipe", "rowwise_with_gw_hp"), profile=None)
    assert ours.row(narrow, ours.check(narrow, ON_GPU, processes)).precision == FLOAT8_MIXED


def test_peers_that_cannot_run_say_so() -> None:
    """A package that is missing is named, and a peer for one GPU is not measured on two."""
    assert peers.obstacle("hf-liger", on_gpu=False, processes=1) == ""
    assert peers.obstacle("megatron", on_gpu=False, processes=2) == "measured only on one GPU"
    if importlib.util.find_spec("torchao") is None:
        assert "torchao" in peers.obstacle("litgpt-float8", on_gpu=True, processes=1)
