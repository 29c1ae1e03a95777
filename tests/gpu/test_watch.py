"""What a run says of slow ranks and of norms by group, on real GPUs: events for a clock, and our own step."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from tests.distributed import ranks
from tests.gpu.conftest import Case, train
from tests.gpu.test_memory import TP2
from tinyllama_mcore.parallel.own_time import OwnTime

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

CYCLES = 20_000_000
"""Of the GPU's clock: about 10 ms."""
LONG_ENOUGH_S = 0.005
VICTIM = 1
BATCH = "--global-batch-size 16 --micro-batch-size 4 --log-interval 2"


def test_the_clock_is_the_gpus_and_nothing_waits_for_it() -> None:
    """What is under way is read later; a wait within a pass is left out; events are used again."""
    own = OwnTime(torch.device("cuda"))
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    for _ in range(3):
        with own.passing():
            torch.cuda._sleep(CYCLES)
            with own.waiting():
                torch.cuda._sleep(50 * CYCLES)
            torch.cuda._sleep(CYCLES)
        assert own.read()[1] == 0, "the pass is under way: the host did not wait"
        torch.cuda.synchronize()
        seconds, passes = own.read()
        assert passes == 1
        assert 2 * LONG_ENOUGH_S < seconds < 20 * LONG_ENOUGH_S


def _train_with_a_slow_gpu(argv: list[str]) -> int:
    """Train; the GPU of rank `VICTIM` has more to do in each layer."""
    from tinyllama_mcore.model.fused_model import FusedDecoderLayer
    from tinyllama_mcore.pretrain import main

    layer = FusedDecoderLayer.forward

    def slow(self: FusedDecoderLayer, *args: object) -> object:
        torch.cuda._sleep(CYCLES)
        return layer(self, *args)

    if int(os.environ["RANK"]) == VICTIM:
        FusedDecoderLayer.forward = slow
    return main(argv)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.parametrize("flags", ["zero1", "zero1 --no-cuda-graph", "zero3", "fsdp", f"zero1 {TP2} --no-cuda-graph"])
def test_the_slow_gpu_is_named(flags: str, tmp_path: Path) -> None:
    """In a graph, where a layer's weights are gathered, and within a tensor-parallel group."""
    config, _, more = flags.partition(" ")
    case = Case(config=config, flags=f"{BATCH} {more}", world=2)
    argv = [*case.argv(tmp_path), "--metrics-file", str(tmp_path / "metrics.jsonl"), "--log-straggler"]
    codes = ranks.run(2, _train_with_a_slow_gpu, [*argv, "--exit-interval", "6"], logs=tmp_path, timeout=300)
    assert codes == [0, 0], (tmp_path / "rank0.log").read_text()[-4000:]
    found = ranks.metrics(tmp_path / "metrics.jsonl")[-1]["straggler"]
    assert found["rank"] == VICTIM
    assert found["pass_s"] - found["median_pass_s"] > LONG_ENOUGH_S


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.parametrize("config", ["zero1", "fsdp"])
def test_the_step_waits_for_the_gpu_once_as_ever(config: str, tmp_path: Path) -> None:
    """Host synchronizations of an iteration, by torch's profiler: what `--log-straggler` adds is none."""
    counts = {}
    for name, more in (("without", ()), ("with", ("--log-straggler",))):
        home = tmp_path / name
        home.mkdir()
        case = Case(config=config, flags=BATCH, world=2)
        profiled = ("--profile", "5:6", "--profile-dir", str(home / "profile"), "--exit-interval", "6")
        train(case, home, *more, *profiled)
        table = (home / "profile" / "iterations_5-6.txt").read_text()
        counts[name] = float(table.partition("host synchronizations: ")[2].splitlines()[0])
    assert counts["with"] == counts["without"] <= 1


@pytest.mark.parametrize("config", ["zero1", "fsdp"])
def test_norms_by_group_add_up(config: str, tmp_path: Path) -> None:
    """Those of our own step and of FSDP; only where an interval of the log ends."""
    case = Case(config=config, flags=BATCH)
    for record in train(case, tmp_path, "--log-grad-norm-by-group", "--exit-interval", "4"):
        assert ("grad_norm_by_group" in record) == (record["iteration"] % 2 == 0)
        if "grad_norm_by_group" in record:
            assert len(record["grad_norm_by_group"]) == 22 * 3 + 3
            assert math.hypot(*record["grad_norm_by_group"].values()) == pytest.approx(record["grad_norm"], rel=1e-4)
