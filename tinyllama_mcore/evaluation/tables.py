"""Scores as the paper's tables show them, in lines of text, with the paper's rows below.

Neighbours: `paper` has the figures, `scores` what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tinyllama_mcore.evaluation.harness import Score
from tinyllama_mcore.evaluation.paper import TABLES, Column, Table, printed
from tinyllama_mcore.evaluation.scores import Evaluated

FROM_THE_PAPER = " (paper)"
NOTHING = "-"


def lines(models: Sequence[Evaluated], columns: Sequence[Column]) -> Iterator[str]:
    """One block a table of the paper that has some of the tasks, and one for tasks that the paper has not."""
    left = list(columns)
    for table in TABLES.values():
        mine = [column for column in table.columns if column in left]
        left = [column for column in left if column not in mine]
        if mine:
            yield from _block(models, mine, table)
    if left:
        yield from _block(models, left, None)


def _block(models: Sequence[Evaluated], columns: Sequence[Column], table: Table | None) -> Iterator[str]:
    """A heading, a row a model, the paper's rows, and which metric it is."""
    tasks = [column.task for column in columns]
    whole = table is not None and len(columns) == len(table.columns)
    rows = [("", [*(column.title for column in columns), *(["Avg"] if whole else [])])]
    for model in models:
        values = {task: 100 * model.scores[task].value for task in tasks if task in model.scores}
        average = sum(values.values()) / len(tasks) if len(values) == len(tasks) else None
        rows.append((model.name, _cells(values, tasks, average, whole=whole)))
    if table is not None:
        for name in table.rows:
            values = {task: value for task in tasks for model, value in printed(task) if model == name}
            rows.append((name + FROM_THE_PAPER, _cells(values, tasks, table.averages[name], whole=whole)))
    yield from ("", table.title if table is not None else "tasks that the paper has not", *_aligned(rows))
    found = {task: [model.scores[task] for model in models if task in model.scores] for task in tasks}
    yield "metrics: " + "; ".join(_how(task, found[task]) for task in tasks)
    yield from (f"note: {column.title}: {column.note}" for column in columns if column.note)


def _cells(values: Mapping[str, float], tasks: Sequence[str], average: float | None, *, whole: bool) -> list[str]:
    """Percentages with two digits, as the paper prints them."""
    found = [values.get(task) for task in tasks] + ([average] if whole else [])
    return [NOTHING if value is None else f"{value:.2f}" for value in found]


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Names to the left, figures to the right."""
    name = max(len(row[0]) for row in rows)
    widths = [max(len(row[1][index]) for row in rows) for index in range(len(rows[0][1]))]
    for first, cells in rows:
        yield "  ".join([first.ljust(name), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])


def _how(task: str, found: Sequence[Score]) -> str:
    """Of one task: metric, solved examples, questions, and the standard error in percent."""
    if not found:
        return f"{task} was not evaluated"
    score = found[-1]
    error = "" if score.stderr is None else f", standard error {100 * score.stderr:.2f}"
    return f"{task} {score.metric.removesuffix(',none')}, {score.shots}-shot, {score.samples:,} questions{error}"
