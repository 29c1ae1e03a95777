"""The 1.1B model is asked to leave by its launcher: the checkpoint is whole before the launcher's grace is over.

13.2 GB of weights and moments on one GPU, under the real launchers; the figures go to runs/gpu/preempted.jsonl.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.distributed import ranks
from tests.distributed.test_launchers import PROGRAMS, SCRIPT, environment
from tests.gpu.conftest import tell
from tinyllama_mcore.checkpoint import layout, manifest, reader, staging, store

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(280)]

LAUNCHERS = {"deepspeed": "--num_gpus", "torchrun": "--nproc_per_node"}
BATCH = ("--recipe", "tinyllama-1.1b", "--global-batch-size", "16", "--micro-batch-size", "4")
GRACE_S, SAVED_WITHIN_S = 30, 15
STATE_BYTES = 13_200_000_000
"""Weights and moments of the model, which dd writes too, to compare."""


def dd_gb_per_s(home: Path) -> float:
    """What one dd of zeros reaches, to a new file."""
    begin = time.monotonic()
    words = ["dd", "if=/dev/zero", f"of={home / 'zeros'}", "bs=16M", f"count={STATE_BYTES >> 24}"]
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.monotonic() - begin
    (home / "zeros").unlink()
    return STATE_BYTES / seconds / 1e9


def iterations(home: Path) -> int:
    """Iterations in the metrics file."""
    path = home / "metrics.jsonl"
    return len(ranks.metrics(path)) if path.exists() else 0


@pytest.mark.parametrize("elements", [1, staging.BUFFER_ELEMENTS, 3 * staging.BUFFER_ELEMENTS + 7])
def test_staged_copies_are_the_same(elements: int) -> None:
    """Every bit, more pieces than there are buffers, and the source changed right after."""
    sources = [torch.randn(elements, device="cuda") for _ in range(6)]
    expected = [source.cpu() for source in sources]
    with staging.Staging(sources[0].device) as under_way:
        copies = [under_way.copy(source) for source in sources]
        for source in sources:
            source.zero_()
    assert all(torch.equal(copy, right) for copy, right in zip(copies, expected, strict=True))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sigterm_to_the_launcher_keeps_the_run(launcher: str, tmp_path: Path) -> None:
    """SIGTERM after two iterations: a whole checkpoint within 15 s; what is there after 30 is killed."""
    home, saved = tmp_path / "run", tmp_path / "run" / "checkpoints"
    home.mkdir()
    disk = dd_gb_per_s(home)
    config = str(ranks.CHECKOUT / "ds_configs" / "zero3.json")
    words = [str(PROGRAMS / launcher), LAUNCHERS[launcher], "1", "--master_port", str(ranks.free_port()), SCRIPT]
    words += ["--deepspeed_config", config, *BATCH, "--save", str(saved), "--metrics-file", str(home / "metrics.jsonl")]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=ranks.CHECKOUT, env=environment(), stdout=log, stderr=log)
    started: list[psutil.Process] = []
    try:
        begin = time.monotonic()
        while iterations(home) < 2:
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() - begin < 120, "no two iterations in 120 s"
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while not layout.iterations(saved):
            assert time.monotonic() - asked < GRACE_S, (home / "log").read_text()[-3000:]
            time.sleep(0.02)
        committed = time.monotonic() - asked
        _, flushing = psutil.wait_procs(started, timeout=GRACE_S - committed)
        gone = None if flushing else round(time.monotonic() - asked, 2)
        for each in flushing:  # as launchers do; the kernel goes on with what is in the page cache
            each.kill()
        process.wait(60)
        folder = layout.find(saved)
        told = re.findall(r"checkpoint written in ([\d.]+) s", (home / "log").read_text())
        found = manifest.read(folder)
        size = sum(record.bytes for record in found.files.values())
        parts = store.in_threads(lambda part: reader.verify(folder, found, part=part, parts=8), range(8))
        rate = size / float(told[0]) / 1e9
        figures = {
            "launcher": launcher,
            "iteration": found.state.iteration,
            "gb": round(size / 1e9, 2),
            "asked_to_committed_s": round(committed, 2),
            "asked_to_gone_s": gone,
            "save_s": float(told[0]),
            "save_gb_per_s": round(rate, 2),
            "dd_gb_per_s": round(disk, 2),
            "of_dd": round(rate / disk, 2),
        }
        tell("preempted", **figures)
        print(figures)
        assert parts == [[]] * 8
        assert found.state.iteration >= 2
        assert committed < SAVED_WITHIN_S
    finally:
        for each in (process, *started):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        shutil.rmtree(home, ignore_errors=True)  # 13 GB
