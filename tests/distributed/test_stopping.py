"""Leaving: asked to at any moment, on a full disk, with a rank that is stuck, under a launcher that restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from tests.distributed import faults, ranks
from tests.distributed.conftest import Job, flags, kept
from tests.distributed.layouts import Mode
from tests.distributed.recipe import BATCH, SAVED
from tests.distributed.test_launchers import command, environment
from tinyllama_mcore.checkpoint import layout, lock, manifest, selection
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.paths import TRACKER
from tinyllama_mcore.training import outputs, stopping

pytestmark = pytest.mark.faults

ZERO1 = Mode(sharding="zero1")
LEAVE_WITHIN_S = 25
"""Launchers kill after 30."""


def wait_for(condition: Callable[[], bool], what: str, limit: float = 60) -> None:
    """Until it holds."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < limit, what
        time.sleep(0.02)


def iterations(home: Path) -> int:
    """Iterations in the metrics file."""
    path = home / "metrics.jsonl"
    return len(ranks.metrics(path)) if path.exists() else 0


@pytest.mark.parametrize("sharding", ["zero1", pytest.param("zero3", marks=pytest.mark.layouts), "fsdp"])
def test_asked_in_the_middle_of_an_iteration(sharding: str, corpus: list[str], tmp_path: Path) -> None:
    """With micro-batches ahead: the iteration is left and the one before it saved; what follows is the same run."""
    argv = [*flags(Mode(sharding=sharding), tmp_path, corpus), "--global-batch-size", "48", "--exit-interval", "2"]
    slow = 0.5  # seconds a micro-batch: an iteration of 12 takes six, and ranks agree once a second
    job = ranks.start(2, faults.pretrain_slowly, [*argv, *kept(tmp_path)], slow, logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) == 1, "the first iteration")
    time.sleep(0.1)
    os.kill(job[1].pid, signal.SIGUSR1)
    for rank in job:
        rank.join(LEAVE_WITHIN_S)
    assert [rank.exitcode for rank in job] == [0, 0]
    assert layout.iterations(tmp_path / "checkpoints") == [1]
    assert iterations(tmp_path) == 1
    ranks.pretrain([*argv, *kept(tmp_path)], world_size=2, logs=tmp_path / "logs")
    ranks.pretrain([*argv, *kept(tmp_path / "unbroken")], world_size=2, logs=tmp_path / "logs")
    one, other = (CheckpointReader(layout.find(home / "checkpoints")) for home in (tmp_path, tmp_path / "unbroken"))
    for key in sorted(one.keys()):
        assert torch.equal(one.tensor(key), other.tensor(key)), key


@pytest.mark.parametrize("mode", [Mode(sharding="zero1", pp=2, dp=1), ZERO1], ids=str)
def test_asked_in_an_evaluation(mode: Mode, corpus: list[str], tmp_path: Path) -> None:
    """Of hours: it is left, with a pipeline after a global batch, and the iteration before it saved."""
    argv = [*flags(mode, tmp_path, corpus), *kept(tmp_path), "--split", "80,20,0", "--eval-interval", "2"]
    job = ranks.start(2, ranks._pretrain, [*argv, "--eval-iters", "1000000"], logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) == 2, "the second iteration")
    time.sleep(1)
    os.kill(job[1].pid, signal.SIGTERM)
    for rank in job:
        rank.join(LEAVE_WITHIN_S)
    assert [rank.exitcode for rank in job] == [0, 0]
    assert layout.iterations(tmp_path / "checkpoints") == [2]


def test_an_index_that_cannot_be_built(corpus: list[str], tmp_path: Path) -> None:
    """All wait for a slow one longer than for anything else; where one finds no room, all leave with what is done.

    One message and exit code 1, as nothing is wrong with the command; with room again the run goes on from there.
    """
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--data-cache-path", str(tmp_path / "cache")]
    argv += ["--split", "5,95,0"]  # an epoch of a few iterations
    limited = [*argv, "--distributed-timeout-minutes", "0.05"]
    codes = ranks.run(2, faults.pretrain_with_a_bad_cache, limited, 3, 5.0, 5, logs=tmp_path / "logs")
    said, other = ((tmp_path / "logs" / f"rank{rank}.log").read_text() for rank in range(2))
    assert codes == [1, 1], said[-2000:]
    assert said.count("error: ") == 1 and "Traceback" not in said and "no progress" not in said + other
    assert "could not be built: " in said and "(No space left on device); make it writable or name another" in said
    done = iterations(tmp_path)
    assert done > 0 and layout.iterations(tmp_path / "checkpoints") == [done]
    output = ranks.pretrain(argv, world_size=2, logs=tmp_path / "logs")
    assert f"iter_{done:07d}, iteration {done}" in output
    assert [record["consumed_samples"] for record in ranks.metrics(tmp_path / "metrics.jsonl")] == [
        8 * iteration for iteration in range(1, BATCH["train_iters"] + 1)
    ]


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk(background: bool, corpus: list[str], tmp_path: Path) -> None:
    """The second save does not fit: one message, exit code 1, the first as it was, nothing half written."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--save-interval", "4", *["--async-save"] * background]
    ranks.pretrain([*argv, "--exit-interval", "4"], world_size=2, logs=tmp_path / "logs")
    codes = ranks.run(2, faults.pretrain_on_a_small_disk, argv, 100_000, logs=tmp_path / "logs")
    assert codes == [1, 1]
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "iter_0000008 could not be written" in said
    assert "File too large" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        lock.FILE,
        "iter_0000004",
        TRACKER,
        outputs.NOTE,
    ]
    assert manifest.read(layout.find(tmp_path / "checkpoints")).state.iteration == 4


def test_background_saves_are_the_same(job_of: Callable[[Mode], Job], corpus: list[str], tmp_path: Path) -> None:
    """Every bit of what is written while the run goes on is that of a save that it waited for."""
    argv = [*job_of(ZERO1).argv, *kept(tmp_path), "--save-interval", "1", "--async-save"]
    ranks.pretrain(argv, world_size=2, logs=tmp_path / "logs")
    assert layout.iterations(tmp_path / "checkpoints") == list(range(1, BATCH["train_iters"] + 1))
    for iteration in (SAVED, BATCH["train_iters"]):
        one, other = (
            CheckpointReader(layout.folder(save, iteration)) for save in (job_of(ZERO1).save, tmp_path / "checkpoints")
        )
        assert one.manifest.state == other.manifest.state
        for key in sorted(one.keys()):
            assert torch.equal(one.tensor(key), other.tensor(key)), key


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    """The ranks that a launcher started."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "pretrain_tinyllama" in " ".join(child.cmdline())
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param("torchrun", signal.SIGTERM, marks=pytest.mark.layouts),
        pytest.param("torchrun", signal.SIGUSR1, marks=pytest.mark.layouts),
        ("deepspeed", signal.SIGTERM),
        pytest.param("deepspeed", signal.SIGUSR1, marks=pytest.mark.layouts),
        pytest.param("deepspeed", signal.SIGKILL, marks=pytest.mark.layouts),
        pytest.param("torchrun", signal.SIGINT, marks=pytest.mark.layouts),
        pytest.param("deepspeed", signal.SIGINT, marks=pytest.mark.layouts),
    ],
)
def test_a_launcher_is_asked_to_leave(launcher: str, number: signal.Signals, corpus: list[str], tmp_path: Path) -> None:
    """Or is killed. Its exit code is its own; whether it tells its ranks or not, they save and leave."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--train-iters", "100000", "--global-batch-size", "32"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command(launcher), *argv], cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    wait_for(lambda: iterations(tmp_path) > 2, "training")
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    handles = launcher == "torchrun" and number in (signal.SIGTERM, signal.SIGINT)
    assert process.wait(LEAVE_WITHIN_S) == (1 if handles else -number)
    wait_for(lambda: not any(running(each) for each in started), "the ranks leave", LEAVE_WITHIN_S)
    saved = manifest.read(layout.find(tmp_path / "checkpoints")).state.iteration
    assert 2 < saved == iterations(tmp_path)
    assert selection.inspect(layout.find(tmp_path / "checkpoints")) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "torchrun", "deepspeed"])
def test_ctrl_c(launcher: str, python: Path, corpus: list[str], tmp_path: Path) -> None:
    """A terminal tells every process at once, and launchers pass it on: saved once, no traceback of ours.

    torchrun is real, and its ranks are forks (tests/forked.py); the others are real.
    """
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--train-iters", "100000", "--global-batch-size", "32"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command(launcher), *argv],
            cwd=tmp_path,
            env=environment(PYTHON_EXEC=str(python)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(lambda: iterations(tmp_path) > 2, "training", 120)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(60)
    wait_for(lambda: not any(running(each) for each in started), "the ranks leave", 60)
    said = (tmp_path / "log").read_text()
    assert said.count("interrupted: saving (with --save) and leaving") == 1
    assert "tinyllama_mcore/" not in said.partition("interrupted:")[2]  # a line of a traceback
    assert code == 0 or launcher != "python", said[-2000:]
    assert 2 < manifest.read(layout.find(tmp_path / "checkpoints")).state.iteration == iterations(tmp_path)
    assert selection.inspect(layout.find(tmp_path / "checkpoints")) == []


def test_ctrl_c_twice_leaves_at_once(corpus: list[str], tmp_path: Path) -> None:
    """Even where the main thread waits in a library, for a rank that is stuck; what a launcher repeats is no second."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--train-iters", "100000"]
    job = ranks.start(2, ranks._pretrain, argv, logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) > 2, "training", 120)
    os.kill(job[1].pid, signal.SIGSTOP)
    for _ in range(2):
        os.kill(job[0].pid, signal.SIGINT)
    time.sleep(stopping.AGAIN_S + 0.5)
    assert job[0].is_alive()
    os.kill(job[0].pid, signal.SIGINT)
    job[0].join(10)
    job[1].kill()
    assert job[0].exitcode == 130
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "interrupted again: leaving at once" in said
    assert "Traceback" not in said


def test_ctrl_c_before_training_has_no_traceback(tmp_path: Path) -> None:
    """While libraries are imported, which takes seconds."""
    words = [*command("python"), "--deepspeed_config", str(ranks.CHECKOUT / "ds_configs" / "zero1.json")]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), "torch is being imported", 60)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted: no training was under way" in said


def test_a_checkpoint_is_committed_before_its_flush(corpus: list[str], tmp_path: Path) -> None:
    """On a disk that is never done: asked to leave, killed before the flush; the checkpoint is whole all the same."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--keep-latest", "1", "--save-interval", "1000"]
    ranks.pretrain([*argv, "--exit-interval", "2"], world_size=2, logs=tmp_path / "logs")
    endless = [*argv, "--train-iters", "100000"]
    job = ranks.start(2, faults.pretrain_on_a_slow_disk, endless, 3600.0, 1 << 28, logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) > 3, "training", 120)
    os.kill(job[0].pid, signal.SIGTERM)
    wait_for(lambda: len(layout.iterations(tmp_path / "checkpoints")) == 2, "the commit", LEAVE_WITHIN_S)
    time.sleep(1)
    assert all(rank.is_alive() for rank in job)
    for rank in job:
        rank.kill()
        rank.join()
    older, newest = layout.iterations(tmp_path / "checkpoints")  # nothing is pruned before the flush
    assert older == 2 < newest == iterations(tmp_path)
    assert selection.inspect(layout.find(tmp_path / "checkpoints")) == []
    output = ranks.pretrain([*endless, "--exit-interval", "1"], world_size=2, logs=tmp_path / "logs")
    assert f"iter_{newest:07d}, iteration {newest}" in output
    assert layout.iterations(tmp_path / "checkpoints") == [newest + 1]


def test_a_flush_under_way_keeps_no_last_save_waiting(corpus: list[str], tmp_path: Path) -> None:
    """A minute of flushing is ahead when the run is asked to leave: the last save is committed within seconds."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--train-iters", "100000", "--save-interval", "8"]
    argv += [
        "--global-batch-size",
        "160",
    ]  # the next save is far: it would wait for the flush, as only the last does not
    saved = tmp_path / "checkpoints"
    job = ranks.start(2, faults.pretrain_on_a_slow_disk, argv, 1.0, 20_000, logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) > 8, "an iteration after the first save", 120)
    assert layout.iterations(saved) == [8]
    os.kill(job[0].pid, signal.SIGTERM)
    wait_for(lambda: len(layout.iterations(saved)) == 2, "the last save", LEAVE_WITHIN_S)
    assert len(list(layout.folder(saved, 8).glob("shard-00001-*"))) > 2 * LEAVE_WITHIN_S  # seconds of flushing
    for rank in job:
        rank.kill()
    assert all(selection.inspect(layout.folder(saved, each)) == [] for each in layout.iterations(saved))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_flush_that_fails(victim: int, corpus: list[str], tmp_path: Path) -> None:
    """It takes back what was committed: one message, exit code 1 on every rank, the checkpoint before it as it was."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--save-interval", "4", "--exit-interval", "8"]
    first = 5 if victim == 0 else 1  # flushes of a save on that rank
    codes = ranks.run(2, faults.pretrain_on_a_broken_disk, argv, victim, first, logs=tmp_path / "logs")
    assert codes == [1, 1]
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "iter_0000008 could not be written: [Errno 5] Input/output error" in said
    assert "Traceback" not in said
    assert layout.iterations(tmp_path / "checkpoints") == [4]
    assert selection.inspect(layout.find(tmp_path / "checkpoints")) == []


def running(process: psutil.Process) -> bool:
    """Whether a process still does something."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stuck_rank_ends_the_job(corpus: list[str], tmp_path: Path) -> None:
    """One rank is stopped: the other tells where it waits, and ends with a code that is not zero."""
    argv = [*flags(ZERO1, tmp_path, corpus), *kept(tmp_path), "--train-iters", "100000"]
    job = ranks.start(2, ranks._pretrain, [*argv, "--distributed-timeout-minutes", "0.05"], logs=tmp_path / "logs")
    wait_for(lambda: iterations(tmp_path) > 3, "training")
    os.kill(job[1].pid, signal.SIGSTOP)
    job[0].join(30)
    job[1].kill()
    assert job[0].exitcode == 1
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert "error: rank 0 (" in said
    assert "has made no progress for 3 s (--distributed-timeout-minutes), in iteration" in said
    assert "in all_reduce" in said


def test_torchrun_restarts_a_killed_job(
    job_of: Callable[[Mode], Job], python: Path, corpus: list[str], tmp_path: Path
) -> None:
    """A rank is killed: torchrun starts the job again, which goes on by itself to the same numbers.

    Its ranks are forks that have their imports made (tests/forked.py).
    """
    argv = [*job_of(ZERO1).argv, *kept(tmp_path), "--save-interval", "3"]
    words = command("torchrun")
    words[1:1] = ["--max-restarts", "1"]
    with (tmp_path / "log").open("w") as log:
        there = environment(PYTHON_EXEC=str(python))  # torchrun's own variable: what its ranks are started by
        launcher = subprocess.Popen([*words, *argv], cwd=tmp_path, env=there, stdout=log, stderr=log)
    wait_for(lambda: iterations(tmp_path) > 6, "training")
    descendants(launcher)[0].kill()
    assert launcher.wait(120) == 0, (tmp_path / "log").read_text()[-3000:]
    for name in ("iteration", "lm_loss", "grad_norm", "consumed_samples"):
        assert [r[name] for r in ranks.metrics(tmp_path / "metrics.jsonl")] == [r[name] for r in job_of(ZERO1).metrics]
