"""DeepSpeed is told of one micro-batch, of the shard axis, and of no optimizer, timer or clipping that is ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.config import DeepSpeedConfig

from tests.distributed.layouts import Mode
from tests.engine.small import run_of
from tinyllama_mcore.engine.deepspeed_config import deepspeed_config
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.launchers import Launch

ALL = [
    *(Mode(sharding=name, precision=dtype) for name in ("zero1", "zero2", "zero3") for dtype in ("fp32", "bf16")),
    Mode(sharding="zero0"),
    Mode(sharding="zero3-offload"),
]


@pytest.mark.parametrize("mode", ALL, ids=str)
def test_what_every_stage_is_told(mode: Mode, tmp_path: Path) -> None:
    """Of the JSON, all but what the schedule and our AdamW already do."""
    run = run_of(mode, tmp_path)
    stage = run.sharding.zero_stage
    told = deepspeed_config(run)
    assert (told["gradient_accumulation_steps"], told["train_micro_batch_size_per_gpu"]) == (1, 2)
    assert told["train_batch_size"] == 2 * mode.dp * mode.cp
    assert told["managed_gradient_accumulation"] is False and "optimizer" not in told
    assert told["gradient_clipping"] == (0.0 if stage == 0 else run.optimizer.clip_grad)
    assert told["bf16"]["enabled"] == (mode.precision == "bf16")
    in_fp32 = mode.precision == "bf16" and stage == 1
    assert told["bf16"].get("immediate_grad_update", False) == in_fp32
    assert told["zero_optimization"]["stage"] == stage
    for key, value in run.sharding.deepspeed["zero_optimization"].items():
        assert told["zero_optimization"][key] == value


def test_context_ranks_are_data_parallel_to_deepspeed(tmp_path: Path) -> None:
    """They hold the same weights, which it averages gradients of."""
    told = deepspeed_config(run_of(Mode(sharding="zero1", cp=2), tmp_path))
    assert told["train_batch_size"] == 2 * 2 * 2


def test_where_nothing_is_sharded_the_block_about_it_goes(tmp_path: Path) -> None:
    """Stage 3 on one rank runs as stage 1: its keys would be read, and are about what does not happen."""
    run = run_of(Mode(sharding="zero3", dp=1, precision="bf16"), tmp_path)
    assert "stage3_param_persistence_threshold" in run.sharding.deepspeed["zero_optimization"]
    assert deepspeed_config(run)["zero_optimization"] == {"stage": 1}
    assert run.sharding.deepspeed["zero_optimization"]["stage"] == 3


def test_the_json_is_left_as_it_is(tmp_path: Path) -> None:
    """A pure function."""
    run = run_of(Mode(sharding="zero2", precision="bf16"), tmp_path)
    before = dataclasses.asdict(run)
    deepspeed_config(run)
    assert dataclasses.asdict(run) == before


def test_deepspeed_reads_it_so(tmp_path: Path) -> None:
    """Its own parser, of a job of one rank."""
    read = DeepSpeedConfig(deepspeed_config(run_of(Mode(sharding="zero1", dp=1, precision="bf16"), tmp_path)))
    assert (read.zero_optimization_stage, read.gradient_accumulation_steps, read.train_batch_size) == (1, 1, 4)
    assert read.bfloat16_config.enabled and not read.timers_config.enabled


def test_deepspeed_counts_the_processes_of_a_host_by_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And starts no `numactl`, as it would at every reduction of ZeRO-3 on a CPU: it finds no program here."""
    for name in launch.PUBLISHED:  # each is as it was after the test
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("PATH", "")
    launch.publish(Launch(rank=0, world_size=1, local_rank=0, local_size=3))
    assert CPU_Accelerator().device_count() == 3
