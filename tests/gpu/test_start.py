"""What reading the weights back costs at the start of the 1.1B model, under every engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Case, tell, train
from tests.gpu.test_training import BATCH

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]

CASES = {f"{name}, data {world}": (name, world) for name in ("zero1", "zero2", "zero3", "fsdp") for world in (1, 2)}


@pytest.mark.parametrize("name", CASES)
def test_the_check_costs_little(name: str, tmp_path: Path) -> None:
    """Less than 2 % of the start, with initial weights and with a checkpoint, which has moments too.

    The start is counted from the fork of the ranks, which have their imports behind them: a real one takes longer.
    """
    config, world = CASES[name]
    if world > torch.cuda.device_count():
        pytest.skip(f"needs {world} GPUs")
    case = Case(config=config, flags=f"{BATCH} {8 // world} --save {tmp_path / 'checkpoints'}", world=world)
    for start in ("initial", "checkpoint"):
        train(case, tmp_path / start, "--exit-interval", "1")
        log = (tmp_path / start / "rank0.log").read_text()
        seconds, whole = map(float, re.findall(r"verified after loading in ([\d.]+) s; ([\d.]+) s since", log)[0])
        share = seconds / whole
        tell("start", case=name, start=start, check_s=seconds, start_s=whole, share=share)
        print(f"{name}, {start}: {seconds:.3f} s of {whole:.1f} s, {share:.2%}")
        assert share < 0.02
