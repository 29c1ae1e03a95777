"""The loggers, written to real files and read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tinyllama_mcore.model.flops import FlopsPerToken
from tinyllama_mcore.training.loggers import TensorBoardLogger
from tinyllama_mcore.training.metrics import Meter, StepOutcome, StepRecord, Validation, step_record


def meter(device_name: str | None = "NVIDIA H200") -> Meter:
    """A small job on two devices."""
    return Meter(
        seq_length=128,
        world_size=2,
        flops=FlopsPerToken(full_attention=7e9, causal_attention=6e9),
        device_name=device_name,
    )


def record(iteration: int, loss: float = 0.1, seconds: float = 0.5, **changes: object) -> StepRecord:
    """A step of that job."""
    outcome = StepOutcome(
        iteration=iteration,
        global_batch_size=16,
        consumed_samples=16 * iteration,
        lm_loss=loss,
        grad_norm=1 / 3,
        lr=4e-4,
        iteration_time_s=seconds,
    )
    return dataclasses.replace(step_record(meter(), outcome), **changes)


def test_tensorboard_events_read_back(tmp_path: Path) -> None:
    """TensorBoard's own reader finds the scalars; after a resume each iteration stands once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end, loss in ((0, 3, 1.0), (1, 4, 2.0)):
        logger = TensorBoardLogger(str(tmp_path), start_iteration=start)
        for iteration in range(start + 1, end + 1):
            logger.step(record(iteration, loss, mfu=None))
        logger.evaluation(end, Validation(loss=0.5))
        logger.saved(end, 1.5, in_background=False)
        logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("lm loss")] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert [e.step for e in events.Scalars("lm loss validation")] == [4]
    assert [(e.step, e.value) for e in events.Scalars("save-checkpoint-time")] == [(4, 1.5)]
    assert "mfu" not in events.Tags()["scalars"]
