"""The table's arithmetic: shares, ratios, both conventions of MFU, hours; what is not measured divides nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tinyllama_mcore.benchmarking import report
from tinyllama_mcore.benchmarking.workload import (
    ALL_BF16,
    FLOAT8,
    FLOAT8_MIXED,
    MIXED,
    Measurement,
    median_and_spread,
    workload_of,
)

WORKLOAD = workload_of("tinyllama-1.1b", on_gpu=True, batch=(8, 8), timed=(4, 10))
H100 = "NVIDIA H100 80GB HBM3"
MACHINE = report.Machine(device=H100, processes=1, versions={"torch": "2.11.0"})


def measured(name: str, kind: str, tokens_per_s: float | None, precision: str = MIXED) -> Measurement:
    """A row."""
    return Measurement(name=name, kind=kind, precision=precision, tokens_per_s=tokens_per_s, peak_memory_gib=40.0)


ROWS = [
    measured("floor", "floor", 90_000.0),
    measured("mine", "ours", 72_000.0),
    measured("slow", "peer", 60_000.0),
    measured("fast", "peer", 64_000.0),
    measured("light", "peer", 80_000.0, ALL_BF16),
    measured("narrow", "peer", 80_000.0, FLOAT8),
    measured("mine, narrow", "ours", 92_000.0, FLOAT8_MIXED),
    replace(measured("absent", "peer", None), problem="not installed: a | b"),
]


def test_shares_and_ratios() -> None:
    """Of the floor, and of the fastest peer of the same precision: one of another precision is no yardstick."""
    found = {each.row.name: each for each in report.compare(ROWS, WORKLOAD, H100)}
    assert found["mine"].of_floor == pytest.approx(0.8)
    assert found["mine"].of_best_peer == pytest.approx(72 / 64)
    assert found["slow"].of_best_peer == pytest.approx(60 / 64)
    assert found["fast"].of_best_peer == found["light"].of_best_peer == 1.0
    assert found["mine, narrow"].of_best_peer == pytest.approx(92 / 80), "masters in fp32 are no easier than bf16"
    assert found["floor"].of_floor == 1.0
    assert found["floor"].of_best_peer is None
    assert found["absent"] == replace(
        found["absent"], mfu=None, mfu_causal=None, of_floor=None, of_best_peer=None, hours=None
    )


def test_both_conventions_of_mfu() -> None:
    """By the FLOPs a token that docs/evidence/performance.md tells, over the data sheet's 989.4 TFLOP/s."""
    mine = report.compare(ROWS, WORKLOAD, H100)[1]
    assert mine.mfu == pytest.approx(72_000 * 7.314e9 / 989.4e12, rel=1e-3)
    assert mine.mfu_causal == pytest.approx(72_000 * 6.760e9 / 989.4e12, rel=1e-3)
    assert [each.mfu for each in report.compare(ROWS, WORKLOAD, None)] == [None] * len(ROWS)


def test_hours_are_those_of_the_paper() -> None:
    """24,000 tokens/s are 3,472 hours for 300 B tokens: the paper's 3,456 within its rounding."""
    (row,) = report.compare([measured("paper", "ours", 24_000.0)], WORKLOAD, None)
    assert row.hours == pytest.approx(dict(report.PUBLISHED_HOURS)["TinyLlama-1.1B"], rel=0.01)
    assert row.of_floor is None
    assert row.of_best_peer is None


def test_the_table() -> None:
    """Every line has as many cells as the header; a row that was not measured says why."""
    lines = list(report.markdown(report.compare(ROWS, WORKLOAD, H100), WORKLOAD, MACHINE))
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {len(report.HEADER) + 1}
    assert "| mine | 72,000 | 53.2 % | 49.2 % | 0.800 | 1.125 | 40.0 | bf16, fp32 masters, fp32 accumulation |" in table
    assert "not measured: not installed: a / b" in table[-1]
    assert "micro batch 8 x 8" in lines[0]


def test_the_figure_has_a_bar_a_row(tmp_path: Path) -> None:
    """A picture that grows with the rows; the floor is no trainer and has none."""
    from matplotlib.image import imread

    pictures = []
    for rows in (ROWS[:1], ROWS):
        output = tmp_path / f"{len(rows)}.png"
        report.figure(report.compare(rows, WORKLOAD, H100), WORKLOAD, MACHINE, output)
        pictures.append(imread(output))
    few, many = pictures
    assert many.shape[0] > few.shape[0]
    assert many.min() < 0.5 < many.max()


def test_median_and_spread() -> None:
    """The middle of an odd and an even number of values, and the range over it."""
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, 1.0)
    assert median_and_spread([4.0, 1.0, 2.0, 2.0]) == (2.0, 1.5)
