"""The paper's figures as it prints them, and how ours stand beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tinyllama_mcore.evaluation import figure, paper, tables
from tinyllama_mcore.evaluation.harness import Score
from tinyllama_mcore.evaluation.scores import Evaluated

MISPRINTED = {("table2", "Pythia-1.0B"): 47.87, ("table2", "TinyLlama-1.1B"): 52.97, ("table3", "Pythia-1.4B"): 17.74}
"""Rows whose printed average is not that of their printed figures -> what those give."""


def model(name: str, tokens: int | None, **values: float) -> Evaluated:
    """A model with scores by task, as shares of 1."""
    scores = {
        task: Score(
            metric="acc,none",
            value=value,
            stderr=0.01,
            shots=0,
            samples=100,
            version="1.0",
            metrics={"acc,none": value},
        )
        for task, value in values.items()
    }
    return Evaluated(name=name, identity=name, iteration=1, tokens=tokens, run="run", scores=scores)


def test_every_figure_stands_in_the_paper(checkout: Path) -> None:
    """Row by row, where the paper's text is at hand."""
    text = checkout.parent / "shared/reference/paper.txt"
    if not text.exists():
        pytest.skip("the paper's text is not at hand")
    printed = {}
    for line in text.read_text().splitlines():
        cells = [
            re.sub(r"\$\\mathbf\{(.*)\}\$", r"\1", cell.strip()).replace(" ", "") for cell in line.split("|")[1:-1]
        ]
        if cells and re.fullmatch(r"(OPT|Pythia|TinyLlama)-1\.\d\w?B?", cells[0]):
            printed[len(cells), cells[0]] = [float(cell) for cell in cells[1:]]
    assert len(printed) == 7
    for table in paper.TABLES.values():
        for name, row in table.rows.items():
            assert printed[len(row) + 2, name] == [*row, table.averages[name]]


def test_the_printed_averages() -> None:
    """Of the printed figures, but for three rows that the paper itself prints so."""
    for key, table in paper.TABLES.items():
        for name, row in table.rows.items():
            mean = round(sum(row) / len(row), 2)
            assert mean == pytest.approx(MISPRINTED.get((key, name), table.averages[name]), abs=0.006)
            assert (abs(mean - table.averages[name]) > 0.006) == ((key, name) in MISPRINTED)


def test_a_table_is_the_papers_with_our_rows() -> None:
    """All columns and the average where all tasks are asked; those that are asked, without it, otherwise."""
    columns = paper.columns("table2")
    ours = model("iter_0000010", 10, **{column.task: 0.5 + index / 100 for index, column in enumerate(columns)})
    shown = list(tables.lines([ours], columns))
    assert shown[1] == "commonsense reasoning, zero-shot (the paper's Table 2)"
    assert shown[2].split() == ["HellaSwag", "Obqa", "WinoGrande", "ARC-c", "ARC-e", "boolq", "piqa", "Avg"]
    assert shown[3].split() == ["iter_0000010", "50.00", "51.00", "52.00", "53.00", "54.00", "55.00", "56.00", "53.00"]
    assert shown[7].split() == [
        "TinyLlama-1.1B", "(paper)", "59.20", "36.00", "59.12", "30.10", "55.25", "57.83", "73.29", "52.99",
    ]  # fmt: skip
    assert shown[8].startswith("metrics: hellaswag acc, 0-shot, 100 questions, standard error 1.00; openbookqa")
    some = list(tables.lines([ours], paper.columns("boolq, own ,hellaswag,boolq")))
    assert some[2].split() == ["HellaSwag", "boolq"]
    assert some[3].split() == ["iter_0000010", "50.00", "55.00"]
    assert some[4].split() == ["OPT-1.3B", "(paper)", "53.65", "60.83"]
    assert some[10:13] == ["tasks that the paper has not", "              own", "iter_0000010    -"]
    assert any("loses the first space" in line for line in tables.lines([ours], paper.columns("table3")))


def test_a_task_is_asked_as_in_the_paper() -> None:
    """By its table's name or by its own."""
    shots = {column.task: column.shots for column in paper.columns("table2,mmlu,bbh_fewshot,drop,humaneval,own")}
    assert shots == {
        **{column.task: 0 for column in paper.TABLES["table2"].columns},
        **{"mmlu": 5, "bbh_fewshot": 3, "drop": 3, "humaneval": 0, "own": None},
    }


def test_the_figure_has_a_panel_a_task(tmp_path: Path) -> None:
    """Lines of the paper's models leave ink in a panel of the paper's, and none in another."""
    from matplotlib.image import imread

    points = [model("a", 10, piqa=0.5, own=0.5), model("b", 20, piqa=0.6, own=0.6)]
    ink = {}
    for name in ("piqa", "own"):
        figure.draw(points, paper.columns(name), tmp_path / "new" / f"{name}.png")
        ink[name] = float((1 - imread(tmp_path / "new" / f"{name}.png")[..., :3]).sum())
    assert 0 < ink["own"] < ink["piqa"]
    figure.draw(points, paper.columns("table2"), tmp_path / "table2.png")
    height, width, _ = imread(tmp_path / "table2.png").shape
    assert width > 1000 > height > 500
