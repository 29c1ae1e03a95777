"""The monitors of the DeepSpeed JSON, in a real run: every figure at its iteration, with DeepSpeed and with FSDP."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags, kept, write_json
from tests.distributed.layouts import Mode
from tinyllama_mcore.training.monitors import SAVING, SCALARS, VALIDATION


def from_tensorboard(directory: Path) -> dict[str, dict[int, float]]:
    """Tag -> iteration -> value, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def from_csv(directory: Path) -> dict[str, dict[int, float]]:
    """The same of a directory of CSV files; a step that stands twice is an error."""
    found: dict[str, dict[int, float]] = {}
    for path in directory.glob("*.csv"):
        with path.open(newline="") as file:
            (_, tag), *rows = csv.reader(file)
        found[tag] = {int(step): float(value) for step, value in rows}
        assert len(found[tag]) == len(rows), path
    return found


@pytest.mark.parametrize("name", ["zero1", "zero3", "fsdp"])
def test_monitors_get_what_the_metrics_file_gets(name: str, corpus: list[str], tmp_path: Path) -> None:
    """Four iterations with an evaluation and a save, then two more from the checkpoint of the second."""
    argv = [*flags(Mode(sharding=name), tmp_path, corpus), "--split", "80,20,0", "--eval-interval", "2"]
    config = json.loads((tmp_path / "ds.json").read_text())
    for block in ("tensorboard", "csv_monitor"):
        config[block] = {"enabled": True, "output_path": str(tmp_path / block), "job_name": "job"}
    write_json(tmp_path / "ds.json", config)
    argv += [*kept(tmp_path), "--eval-iters", "1", "--save-interval", "2"]
    for more in (["--exit-interval", "4"], ["--iteration", "2", "--exit-interval", "6"]):
        ranks.pretrain([*argv, *more], world_size=2, logs=tmp_path / more[-1])
    records = ranks.metrics(tmp_path / "metrics.jsonl")
    assert [r["iteration"] for r in records] == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line.get("event") == "validation"]
    of_datasets = {Path(prefix).name: prefix for prefix in (corpus[1], corpus[3])}
    expected = {
        tag: {r["iteration"]: float(r[field]) for r in records}
        for tag, field in SCALARS.items()
        if records[0][field] is not None
    }
    for found in (from_csv(tmp_path / "csv_monitor/job"), from_tensorboard(tmp_path / "tensorboard/job")):
        assert set(found) == {*expected, VALIDATION, *(f"{VALIDATION} {name}" for name in of_datasets), SAVING}
        for tag, values in expected.items():
            assert found[tag] == pytest.approx(values, rel=1e-6), tag  # TensorBoard keeps 32 bits
        assert set(found[VALIDATION]) == set(found[SAVING]) == {2, 4, 6}
        for name, prefix in of_datasets.items():
            losses = {line["iteration"]: line["by_dataset"][prefix]["loss"] for line in evaluations}
            assert found[f"{VALIDATION} {name}"] == pytest.approx(losses, rel=1e-6)
    assert from_csv(tmp_path / "csv_monitor/job")["lm loss"] == expected["lm loss"]
