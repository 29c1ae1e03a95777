"""The loggers, written to real files and read back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.model.flops import FlopsPerToken
from tinyllama_mcore.training.loggers import METRICS_LINE_START, JsonLinesLogger, TensorBoardLogger
from tinyllama_mcore.training.metrics import Meter, StepOutcome, StepRecord, step_record


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


def write(path: Path, iterations: range, *, start_iteration: int, loss: float) -> None:
    """One attempt of a run."""
    logger = JsonLinesLogger(str(path), start_iteration=start_iteration)
    for iteration in iterations:
        logger.step(record(iteration, loss))
    logger.close()


def read(path: Path) -> list[tuple[int, float]]:
    """(iteration, loss) of each line."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["iteration"], row["lm_loss"]) for row in rows]


def test_json_lines_keep_every_digit_and_field(tmp_path: Path) -> None:
    """What is read back is the record itself, bit for bit."""
    path = tmp_path / "new" / "metrics.jsonl"
    write(path, range(1, 2), start_iteration=0, loss=2 / 3)
    assert StepRecord(**json.loads(path.read_text())) == record(1, 2 / 3)
    assert path.read_bytes().startswith(METRICS_LINE_START)


def test_each_line_is_there_before_the_next_step(tmp_path: Path) -> None:
    """A run that is killed leaves every line that it finished."""
    path = tmp_path / "metrics.jsonl"
    logger = JsonLinesLogger(str(path), start_iteration=0)
    logger.step(record(1))
    assert len(read(path)) == 1
    logger.close()


def test_resume_drops_the_lines_of_the_earlier_attempt(tmp_path: Path) -> None:
    """Five iterations, a resume at 3, then 4 to 6 again: each iteration stands once, the later attempt's."""
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6), start_iteration=0, loss=1.0)
    write(path, range(4, 7), start_iteration=3, loss=2.0)
    assert read(path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_resume_drops_a_line_that_was_cut_short(tmp_path: Path) -> None:
    """A crash in the middle of a write leaves half a line."""
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4), start_iteration=0, loss=1.0)
    path.write_bytes(path.read_bytes()[:-20])
    write(path, range(3, 5), start_iteration=2, loss=2.0)
    assert read(path) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


@pytest.mark.parametrize("content", [b"# notes\n", b"notes", b'{"iteration": "x"}\n', b"[1]\n"])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A path given by mistake is refused, not emptied."""
    path = tmp_path / "README.md"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="something else than metrics"):
        JsonLinesLogger(str(path), start_iteration=0)
    assert path.read_bytes() == content


def test_an_unwritable_metrics_file_is_a_users_mistake_later_too(tmp_path: Path) -> None:
    """The directory was taken away between the check and the start."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--metrics-file .* cannot be written"):
        JsonLinesLogger(str(tmp_path / "file" / "metrics.jsonl"), start_iteration=0)


def test_tensorboard_events_read_back(tmp_path: Path) -> None:
    """TensorBoard's own reader finds the scalars; after a resume each iteration stands once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end, loss in ((0, 3, 1.0), (1, 4, 2.0)):
        logger = TensorBoardLogger(str(tmp_path), start_iteration=start)
        for iteration in range(start + 1, end + 1):
            logger.step(record(iteration, loss, mfu=None))
        logger.evaluation(end, 0.5)
        logger.saved(end, 1.5, in_background=False)
        logger.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("lm loss")] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert [e.step for e in events.Scalars("lm loss validation")] == [4]
    assert [(e.step, e.value) for e in events.Scalars("save-checkpoint-time")] == [(4, 1.5)]
    assert "mfu" not in events.Tags()["scalars"]
