"""The same script under every launcher, as a user types it: real exit codes, and each launcher's command once for real.

What is known of a launcher by then is asked of its fork, which has its imports made (tests/forked.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tinyllama_mcore.checkpoint import layout, manifest

SCRIPT = str(ranks.CHECKOUT / "examples" / "pretrain_tinyllama.py")
PROGRAMS = Path(sys.executable).parent


def command(launcher: str) -> list[str]:
    """How each launcher starts two ranks of the script (one, for plain python)."""
    return {
        "deepspeed": [str(PROGRAMS / "deepspeed"), "--num_gpus", "2", "--master_port", str(ranks.free_port()), SCRIPT],
        "torchrun": [
            str(PROGRAMS / "torchrun"),
            "--nproc_per_node",
            "2",
            "--master_port",
            str(ranks.free_port()),
            SCRIPT,
        ],
        "python": [sys.executable, SCRIPT],
    }[launcher]


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the package importable and programs of this Python found first."""
    path = {"PYTHONPATH": str(ranks.CHECKOUT), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    return {**os.environ, **path, **extra}


def execute(words: list[str], home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in `home`."""
    return subprocess.run(words, cwd=home, env=environment(**extra), capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "python"])
def test_every_launcher_runs_the_script(launcher: str, corpus: list[str], tmp_path: Path) -> None:
    """Three iterations, metrics on disk, exit code 0."""
    argv = [*flags(Mode(sharding="zero2"), tmp_path, corpus), "--exit-interval", "3", "--metrics-file", "m.jsonl"]
    done = execute([*command(launcher), *argv], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(ranks.metrics(tmp_path / "m.jsonl")) == 3
    world = 1 if launcher == "python" else 2
    assert f"world        {world} = tensor parallel 1 x data parallel {world}" in done.stdout


def test_a_refusal_is_told_once_by_the_launcher(python: Path, corpus: list[str], tmp_path: Path) -> None:
    """One message, no traceback, exit code 2 through the deepspeed launcher."""
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), "--micro-batch-size", "3"]
    _, *words = command("deepspeed")
    done = execute([str(python.with_name("deepspeed")), *words, *argv], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "--micro-batch-size 3" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_bare_command_of_the_trade(python: Path, tmp_path: Path) -> None:
    """Nothing given but the JSON: the debug recipe on the built-in corpus, as README has it, saying what it took."""
    config = str(ranks.CHECKOUT / "ds_configs" / "zero3.json")
    deepspeed = [str(python.with_name("deepspeed")), "--master_port", str(ranks.free_port())]
    done = execute([*deepspeed, SCRIPT, "--deepspeed_config", config, "--exit-interval", "20"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tinyllama-debug" in done.stdout
    assert "built-in corpus" in done.stdout
    assert "iteration  20/100" in done.stdout


@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_to_any_rank_saves_and_leaves(victim: int, corpus: list[str], tmp_path: Path) -> None:
    """The flag is shared: every rank leaves at the same iteration, with a checkpoint and exit code 0."""
    saved, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    argv = [*flags(Mode(sharding="zero1"), tmp_path, corpus), "--train-iters", "5000", "--save", str(saved)]
    argv += ["--metrics-file", str(metrics)]
    job = ranks.start(2, ranks._pretrain, argv, logs=tmp_path / "logs")
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
        assert all(rank.is_alive() for rank in job), (tmp_path / "logs" / "rank0.log").read_text()[-2000:]
        time.sleep(0.05)
    os.kill(job[victim].pid, signal.SIGTERM)
    begin = time.monotonic()
    for rank in job:
        rank.join(25)
    assert [rank.exitcode for rank in job] == [0, 0]
    assert time.monotonic() - begin < 25
    state = manifest.read(layout.find(saved)).state
    assert 3 < state.iteration == len(ranks.metrics(metrics)) < 5000
