"""The record of a step: its fields are a contract, its rates are arithmetic that can be done by hand."""

from __future__ import annotations

import dataclasses

import pytest

from tinyllama_mcore.model.flops import FlopsPerToken
from tinyllama_mcore.training.metrics import Meter, StepOutcome, StepRecord, peak_memory_gib, step_record

OUTCOME = StepOutcome(
    iteration=3,
    global_batch_size=1024,
    consumed_samples=3072,
    lm_loss=10.5,
    grad_norm=1.25,
    lr=4e-4,
    iteration_time_s=4.0,
)


def meter(device_name: str | None) -> Meter:
    """The paper's batch on 16 devices."""
    return Meter(
        seq_length=2048,
        world_size=16,
        flops=FlopsPerToken(full_attention=7.314e9, causal_attention=6.760e9),
        device_name=device_name,
    )


def test_fields_of_the_metrics_file() -> None:
    """The published names; readers outside this repository depend on them."""
    assert {f.name for f in dataclasses.fields(StepRecord)} == {
        "iteration",
        "global_batch_size",
        "consumed_samples",
        "consumed_tokens",
        "consumed_by_dataset",
        "consumed_tokens_by_dataset",
        "lm_loss",
        "grad_norm",
        "lr",
        "iteration_time_s",
        "time",
        "data_wait_s",
        "tokens_per_s_per_gpu",
        "tflops_per_gpu",
        "mfu",
        "tflops_per_gpu_causal",
        "mfu_causal",
        "peak_memory_gib",
        "skipped",
        "skip_reason",
        "rollbacks",
        "grad_norm_by_group",
        "straggler",
    }


def test_rates_of_a_known_step() -> None:
    """2,097,152 tokens in 4 s on 16 devices: 32,768 tokens/s each, times the cost of a token, over 312e12."""
    record = step_record(meter("NVIDIA A100-SXM4-40GB"), OUTCOME)
    assert record.consumed_tokens == 3 * 2_097_152
    assert record.tokens_per_s_per_gpu == 32_768
    assert record.tflops_per_gpu == pytest.approx(32_768 * 7.314e9 / 1e12)
    assert record.mfu == pytest.approx(32_768 * 7.314e9 / 312e12)
    assert record.mfu_causal == pytest.approx(32_768 * 6.760e9 / 312e12)


def test_the_papers_own_speed_is_its_claimed_mfu() -> None:
    """24,000 tokens/s per A100 is the 56% that the repository claims, counting full attention; 52% causal."""
    seconds = 2_097_152 / 16 / 24_000
    record = step_record(meter("NVIDIA A100-SXM4-40GB"), dataclasses.replace(OUTCOME, iteration_time_s=seconds))
    assert (round(record.mfu, 2), round(record.mfu_causal, 2)) == (0.56, 0.52)


def test_rates_are_of_the_iterations_own_batch() -> None:
    """A quarter of the batch in the same time: a quarter of the rate."""
    small = dataclasses.replace(OUTCOME, global_batch_size=256)
    assert step_record(meter(None), small).tokens_per_s_per_gpu == 8_192


def test_no_peak_no_mfu() -> None:
    """A device without a known peak has TFLOP/s, and no MFU."""
    record = step_record(meter(None), OUTCOME)
    assert record.mfu is None
    assert record.mfu_causal is None
    assert record.tflops_per_gpu > 0


def test_memory_of_this_process() -> None:
    """A Python process with torch holds between 50 MiB and a few GiB."""
    assert 0.05 < peak_memory_gib() < 64
