"""`plan_layout.py --measure` on real GPUs: a row that is wrong for them, once corrected, foretells other layouts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.distributed.ranks import CHECKOUT
from tests.gpu.conftest import tell
from tests.gpu.test_memory import FULL, TP2
from tinyllama_mcore.planning import gpus, measure, throughput
from tinyllama_mcore.planning.request import Request, run_of

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1200)]

WRONG = "a100-80gb"
OTHERS = {  # name -> DeepSpeed JSON, micro batch and other flags, GPUs
    "ZeRO-1, micro batch 2": ("zero1", "2", 1),
    "ZeRO-3": ("zero3", "8", 1),
    "FSDP": ("fsdp", "8", 1),
    "ZeRO-1, full recompute": ("zero1", f"8 {FULL}", 1),
    "ZeRO-1 compiled": ("zero1", "8 --compile", 1),
    "ZeRO-1, data 2": ("zero1", "4", 2),
    "ZeRO-1, tensor 2": ("zero1", f"8 {TP2}", 2),
}


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> gpus.Gpu:
    """The wrong row, corrected on this machine by the command itself."""
    path = tmp_path_factory.mktemp("measured") / "here.json"
    argv = ("--gpu", WRONG, "--measure", str(path), "--world-size", "2")
    done = subprocess.run([sys.executable, "tools/plan_layout.py", *argv], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert done.returncode == 0
    tell("measure", row=path.read_text(), told=done.stdout.decode().splitlines()[-60:])
    return gpus.find(str(path))


@pytest.mark.parametrize("name", OTHERS)
def test_other_layouts_are_foretold(name: str, corrected: gpus.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 10 %: the planner's own error and the run's."""
    monkeypatch.chdir(CHECKOUT)
    config, flags, world = OTHERS[name]
    if world > torch.cuda.device_count():
        pytest.skip(f"needs {world} GPUs")
    request = Request(recipe="tinyllama-1.1b", world_size=world, given=("--global-batch-size", "16"))
    run = run_of(request, ["--deepspeed_config", f"ds_configs/{config}.json", "--micro-batch-size", *flags.split()])
    measured = measure.train(run)
    predicted = {
        row: throughput.tokens_per_second(run, gpu) for row, gpu in ((WRONG, gpus.find(WRONG)), ("here", corrected))
    }
    tell("measure", case=name, measured=measured, predicted=predicted)
    assert predicted["here"] == pytest.approx(measured, rel=0.10)
