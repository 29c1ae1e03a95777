"""Metrics files as a run leaves them, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.reporting.conftest import END, RESUMED, SKIPPED, STOPPED
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.reporting.metrics_file import losses_by_dataset, number, read


def line(iteration: int, **more: object) -> str:
    """One iteration, as the first version wrote it."""
    return json.dumps({"iteration": iteration, "consumed_tokens": 2048 * iteration, "lm_loss": 1 / iteration, **more})


def test_a_real_run(real_run: Path, corpus: list[str]) -> None:
    """Each iteration once; two starts, the second in another layout and after lost work; losses by dataset."""
    run = read(real_run)
    assert run.columns["iteration"].tolist() == list(range(1, END + 1))
    assert all(np.isfinite(run.columns[name]).all() for name in ("time", "data_wait_s", "lm_loss", "lr"))
    assert (run.columns["data_wait_s"] < run.columns["iteration_time_s"]).all()
    assert run.skip_reasons == {SKIPPED: "told to"}
    assert run.damage is None
    first, second = run.of("start")
    assert (first["iteration"], second["iteration"]) == (0, RESUMED)
    assert (first["lost_iterations"], second["lost_iterations"]) == (0, STOPPED - RESUMED)
    assert second["lost_s"] > 0 and second["stopped_s"] >= 0 and second["start_s"] > 0
    assert second["changed"]["layout.tensor_model_parallel_size"] == [1, 2]
    assert second["resumed_from"].endswith(f"{RESUMED:07d}")
    assert second["config"]["layout"]["tensor_model_parallel_size"] == 2
    assert second["environment"]["torch"]
    assert [event["iteration"] for event in run.of("save")] == list(range(2, END + 1, 2))
    validations = run.of("validation")
    assert [event["iteration"] for event in validations] == list(range(2, END + 1, 2))
    for event in validations:
        losses = dict(losses_by_dataset(event))
        assert set(losses) == {corpus[1], corpus[3]}
        assert min(losses.values()) < number(event, "loss") < max(losses.values())
        assert event["perplexity"] == pytest.approx(np.exp(event["loss"]))


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """Iterations alone; what they have not is NaN. A line that is still being written is left out, and that is told."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line(1)}\n{line(2)}\n{line(3)}\n{{"iteration": 4, "cons')
    run = read(path)
    assert run.columns["iteration"].tolist() == [1, 2, 3]
    assert run.columns["consumed_tokens"].tolist() == [2048, 4096, 6144]
    assert run.columns["lm_loss"].tolist() == [1.0, 1 / 2, 1 / 3]
    assert np.isnan(run.columns["time"]).all()
    assert run.events == []
    assert run.damage is not None and "line 4 is cut short" in run.damage


def test_a_last_line_of_rubbish(tmp_path: Path) -> None:
    """A disk that lost its power leaves zeros, with an end of line or without."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{line(1)}\n".encode() + bytes(50) + b"\n")
    run = read(path)
    assert len(run) == 1
    assert run.damage == "line 2, the last one, cannot be read and is left out"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no iteration yet"),
        ('{"iteration": 0, "event": "start"}\n', "no iteration yet"),
        ("# notes\n", "something else .* in line 1"),
        ("[1]\n", "something else"),
        ("1\n", "something else"),
        ('{"iteration": "1", "consumed_tokens": 1, "lm_loss": 1}\n', "something else"),
        (f"{line(1)}\nnotes\n{line(2)}\n", "in line 2"),
        (f"{line(1, lr=[1])}\n{line(2)}\n", "in line 1"),
        (f"{line(1, consumed_by_dataset=[1])}\n{line(2)}\n", "in line 1"),
        (f"{line(1, grad_norm_by_group={'head': 'x'})}\n{line(2)}\n", "in line 1"),
        (f"{line(1, straggler={'rank': 1})}\n{line(2)}\n", "in line 1"),
        ("[" * 100_000 + "\n", "something else"),
        (None, "cannot be read: No such file"),
    ],
)
def test_other_files_are_a_users_mistake(tmp_path: Path, content: str | None, message: str) -> None:
    """One sentence, with the path."""
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(path)
