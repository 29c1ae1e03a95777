"""The paper's Tables 2 and 3 as data: which task, which metric, how many examples, and what was printed.

The paper (arXiv 2401.02385, section 3) names the harness and the number of examples, not the metric. The authors'
repository does (jzhang38/TinyLlama, EVAL.md): "We report the acc_norm by default", and WinoGrande and BoolQ have only
acc. Table 3 was made by InstructEval, another program: docs/howto/evaluate.md says how lm-eval's tasks differ.
Neighbours: `harness` runs the tasks, `tables` and `figure` set scores beside these figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinyllama_mcore.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Column:
    """One task as it is asked of a model."""

    task: str
    """lm-eval's name of a task or of a group of tasks."""
    title: str
    """As the paper heads it."""
    metric: str | None = None
    """lm-eval's name; None: acc_norm where the task has it, otherwise its first metric."""
    shots: int | None = None
    """Solved examples before each question; None: as the task itself says."""
    note: str = ""
    """What has to be known to read its scores."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the paper."""

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[float]]
    """Model -> printed percentages, in the order of the columns."""
    averages: Mapping[str, float]
    """Model -> the average as printed."""


OURS = "TinyLlama-1.1B"
LOST_SPACE = (
    "lm-eval loses the first space that a Llama tokenizer generates, so answers of more than one line do not run "
    "(findings/lm_eval_llama_generation_loses_a_space.sh)"
)
TABLES: Mapping[str, Table] = {
    "table2": Table(
        title="commonsense reasoning, zero-shot (the paper's Table 2)",
        columns=(
            Column(task="hellaswag", title="HellaSwag", metric="acc_norm", shots=0),
            Column(task="openbookqa", title="Obqa", metric="acc_norm", shots=0),
            Column(task="winogrande", title="WinoGrande", metric="acc", shots=0),
            Column(task="arc_challenge", title="ARC-c", metric="acc_norm", shots=0),
            Column(task="arc_easy", title="ARC-e", metric="acc_norm", shots=0),
            Column(task="boolq", title="boolq", metric="acc", shots=0),
            Column(task="piqa", title="piqa", metric="acc_norm", shots=0),
        ),
        rows={
            "OPT-1.3B": (53.65, 33.40, 59.59, 29.44, 50.80, 60.83, 72.36),
            "Pythia-1.0B": (47.16, 31.40, 53.43, 27.05, 48.99, 57.83, 69.21),
            "Pythia-1.4B": (52.01, 33.20, 57.38, 28.50, 54.00, 63.27, 70.95),
            OURS: (59.20, 36.00, 59.12, 30.10, 55.25, 57.83, 73.29),
        },
        averages={"OPT-1.3B": 51.44, "Pythia-1.0B": 48.30, "Pythia-1.4B": 51.33, OURS: 52.99},
    ),
    "table3": Table(
        title="problem solving (the paper's Table 3, there by InstructEval)",
        columns=(
            Column(task="mmlu", title="MMLU", metric="acc", shots=5),
            Column(task="bbh_fewshot", title="BBH", metric="exact_match", shots=3),
            Column(task="humaneval", title="HumanEval", metric="pass@1", shots=0, note=LOST_SPACE),
            Column(task="drop", title="DROP", metric="em", shots=3),
        ),
        rows={
            "Pythia-1.0B": (25.70, 28.19, 1.83, 4.25),
            "Pythia-1.4B": (25.41, 29.01, 4.27, 12.27),
            OURS: (25.34, 29.65, 9.15, 15.34),
        },
        averages={"Pythia-1.0B": 14.99, "Pythia-1.4B": 17.72, OURS: 19.87},
    ),
}
"""Name on the command line -> what the paper printed, misprints too."""


def columns(words: str) -> tuple[Column, ...]:
    """What `table2`, `table3`, names of tasks, or several of these between commas ask for; each task once.

    A task of the paper's is asked as in the paper, whether its table or its own name is given.

    Raises:
        ConfigError: nothing is named.
    """
    known = {column.task: column for table in TABLES.values() for column in table.columns}
    found: dict[str, Column] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        named = TABLES[word].columns if word in TABLES else (known.get(word) or Column(task=word, title=word),)
        found |= {column.task: column for column in named}
    if not found:
        raise ConfigError(f"--tasks {words!r} names no task: give {', '.join(TABLES)} or lm-eval's names of tasks")
    return tuple(found.values())


def printed(task: str) -> Iterator[tuple[str, float]]:
    """(model, percentage) of the paper for a task; nothing where the paper has none."""
    for table in TABLES.values():
        for index, column in enumerate(table.columns):
            if column.task == task:
                yield from ((model, row[index]) for model, row in table.rows.items())
