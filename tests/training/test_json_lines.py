"""The metrics file, written and read back: every line of a run, and what stays where it goes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_loggers import record
from tinyllama_mcore.checkpoint.manifest import Event
from tinyllama_mcore.config.data_config import LaterBlend
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.metrics_lines import EVENTS, LINE_START, steps
from tinyllama_mcore.reporting import metrics_file, page
from tinyllama_mcore.reporting.happenings import happenings
from tinyllama_mcore.training.json_lines import JsonLinesLogger
from tinyllama_mcore.training.metrics import StepRecord, Validation

BACK = Event(kind="rolled back", iteration=6, reason="a test", first_sample=32, end_sample=96)


def write(path: Path, iterations: range, *, start_iteration: int, loss: float) -> None:
    """One attempt of a run, with an evaluation and a save at its end."""
    logger = JsonLinesLogger(str(path), start_iteration=start_iteration)
    for iteration in iterations:
        logger.step(record(iteration, loss))
    logger.evaluation(iterations[-1], Validation(loss=loss, seconds=2.0))
    logger.saved(iterations[-1], 1.0, in_background=False)
    logger.close()


def lines(path: Path) -> list[dict[str, Any]]:
    """All of it."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path: Path) -> list[tuple[int, float]]:
    """(iteration, loss) of each iteration."""
    return [(row["iteration"], row["lm_loss"]) for row in steps(path.read_text())]


def events(path: Path) -> list[tuple[str, int]]:
    """(kind, iteration) of each event."""
    return [(row["event"], row["iteration"]) for row in lines(path) if "event" in row]


def test_json_lines_keep_every_digit_and_field(tmp_path: Path) -> None:
    """What is read back is the record itself, bit for bit; every line of the file begins alike."""
    path = tmp_path / "new" / "metrics.jsonl"
    write(path, range(1, 2), start_iteration=0, loss=2 / 3)
    assert [StepRecord(**row) for row in steps(path.read_text())] == [record(1, 2 / 3)]
    assert all(line.startswith(LINE_START) for line in path.read_bytes().splitlines())
    assert {kind for kind, _ in events(path)} <= set(EVENTS)


def test_each_line_is_there_before_the_next_step(tmp_path: Path) -> None:
    """A run that is killed leaves every line that it finished."""
    path = tmp_path / "metrics.jsonl"
    logger = JsonLinesLogger(str(path), start_iteration=0)
    logger.step(record(1))
    assert len(read(path)) == 1
    logger.close()


def test_resume_drops_the_lines_of_the_earlier_attempt(tmp_path: Path) -> None:
    """Five iterations, a resume at 3, then 4 to 6 again: each iteration stands once, the later attempt's.

    What was lost is told: two iterations of half a second, an evaluation and a save.
    """
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 6), start_iteration=0, loss=1.0)
    write(path, range(4, 7), start_iteration=3, loss=2.0)
    assert read(path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert events(path) == [("start", 0), ("start", 3), ("validation", 6), ("save", 6)]
    first, second = (row for row in lines(path) if row.get("event") == "start")
    assert (first["lost_iterations"], first["lost_s"], first["stopped_s"]) == (0, 0.0, None)
    assert (second["lost_iterations"], second["lost_s"]) == (2, 2 * 0.5 + 2.0 + 1.0)
    assert 0 <= second["stopped_s"] < 60


def test_starts_and_rollbacks_stay(tmp_path: Path) -> None:
    """Back from 6 to 2 past a start at 4: what was said of iterations is dropped, what happened to the run is not."""
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 5), start_iteration=0, loss=1.0)
    logger = JsonLinesLogger(str(path), start_iteration=4)
    for iteration in (5, 6):
        logger.step(record(iteration))
    logger.went_back(BACK, 2)
    logger.step(record(3))
    logger.close()
    assert [row[0] for row in read(path)] == [1, 2, 3]
    assert events(path) == [("start", 0), ("start", 4), ("rollback", 2)]
    (back,) = (row for row in lines(path) if row.get("event") == "rollback")
    assert back["back_from"] == 6 and back["reason"] == "a test"
    assert (back["first_sample"], back["end_sample"]) == (32, 96)
    assert (back["lost_iterations"], back["lost_s"]) == (4, 4 * 0.5 + 2.0 + 1.0)


def test_a_planned_blend_is_told_anew_where_its_iteration_is(tmp_path: Path) -> None:
    """Dropped with the iteration that it begins with, not with one before it; the report marks it."""
    path = tmp_path / "metrics.jsonl"
    later = LaterBlend(first_sample=32, blend=((0.5, "a"), (0.5, "b")), iteration=2)
    for start in (0, 2, 3):
        logger = JsonLinesLogger(str(path), start_iteration=start)
        for iteration in range(start + 1, 5):
            if iteration == 3:
                logger.blend_began(iteration, later)
            logger.step(record(iteration))
        logger.close()
    assert events(path) == [("start", 0), ("start", 2), ("blend", 3), ("start", 3)]
    found = next(happening for happening in happenings(metrics_file.read(path)) if happening.kind == "blend")
    assert (found.iteration, found.text) == (3, "begins with sample 32: 0.5000 from a, 0.5000 from b")
    assert "<td>planned blend</td>" in page.render([metrics_file.read(path)])


def test_a_run_from_zero_begins_anew(tmp_path: Path) -> None:
    """Nothing of another run is left, its start neither."""
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4), start_iteration=0, loss=1.0)
    write(path, range(1, 3), start_iteration=0, loss=2.0)
    assert read(path) == [(1, 2.0), (2, 2.0)]
    assert events(path) == [("start", 0), ("validation", 2), ("save", 2)]


def test_a_validation_line(tmp_path: Path) -> None:
    """Perplexity is e to the loss, of each dataset too."""
    path = tmp_path / "metrics.jsonl"
    logger = JsonLinesLogger(str(path), start_iteration=0)
    logger.evaluation(1, Validation(loss=1.0, by_dataset={"a": 0.0, "b": 200.0}, seconds=0.5))
    logger.close()
    found = lines(path)[-1]
    assert (found["loss"], found["perplexity"], found["seconds"]) == (1.0, pytest.approx(2.718281828), 0.5)
    assert found["by_dataset"] == {
        "a": {"loss": 0.0, "perplexity": 1.0},
        "b": {"loss": 200.0, "perplexity": float("inf")},
    }


def test_resume_drops_a_line_that_was_cut_short(tmp_path: Path) -> None:
    """A crash in the middle of a write leaves half a line."""
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3), start_iteration=0, loss=1.0)
    with path.open("ab") as file:
        file.write(json.dumps({"iteration": 3, "lm_loss": 1.0}).encode()[:-5])
    write(path, range(3, 5), start_iteration=2, loss=2.0)
    assert read(path) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


@pytest.mark.parametrize("content", [b"# notes\n", b"notes", b'{"iteration": "x"}\n', b"[1]\n", b"1\n"])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A path given by mistake is refused, not emptied."""
    path = tmp_path / "README.md"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="something else than metrics"):
        JsonLinesLogger(str(path), start_iteration=0)
    assert path.read_bytes() == content


def test_a_file_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its lines have neither times nor events."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"iteration": i, "lm_loss": 1.0}) + "\n" for i in (1, 2, 3)))
    write(path, range(3, 5), start_iteration=2, loss=2.0)
    assert read(path) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert lines(path)[2]["stopped_s"] is None


def test_an_unwritable_metrics_file_is_a_users_mistake_later_too(tmp_path: Path) -> None:
    """The folder was taken away between the check and the start."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--metrics-file .* cannot be written"):
        JsonLinesLogger(str(tmp_path / "file" / "metrics.jsonl"), start_iteration=0)
