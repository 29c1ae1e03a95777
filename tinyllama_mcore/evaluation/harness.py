"""lm-evaluation-harness on a Hugging Face directory: the one file that speaks to `lm_eval`.

Scores are those of lm-eval's own `simple_evaluate(model="hf")`, to the last digit: nothing about prompts, BOS or
padding is decided here. Neighbours: `models` gives the directory, `paper` the tasks, `scores` keeps what comes back.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllama_mcore.config import packages
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import did_you_mean
from tinyllama_mcore.evaluation.paper import Column

DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp32": "float32"}
"""Name on the command line -> torch's."""
RUN_CODE = "--confirm-run-unsafe-code"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How models are asked."""

    columns: Sequence[Column]
    include_path: Path | None = None
    """Directory with task files of one's own, which come before lm-eval's of the same names."""
    dtype: str = "bf16"
    """Of weights and arithmetic: a key of `DTYPES`."""
    device: str = "cpu"
    batch_size: int = 8
    """Requests at once."""
    limit: int | None = None
    """Questions of each task; None: all."""
    run_code: bool = False
    """Whether tasks may run code that the model wrote."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What lm-eval found for one task."""

    metric: str
    """lm-eval's key, with its filter: `acc_norm,none`."""
    value: float
    """As lm-eval gives it: a share of 1 for accuracies."""
    stderr: float | None
    """Standard error of `value`; None where lm-eval has none."""
    shots: int
    samples: int
    """Questions that were asked."""
    version: str
    """Of the task, as its file says."""
    metrics: Mapping[str, float]
    """Every metric of the task, by lm-eval's keys."""

    def to_plain(self) -> dict[str, Any]:
        """As a line of JSON holds it."""
        return asdict(self)


def require() -> str:
    """The version of lm-eval. ConfigError where it, or what it needs to run a Hugging Face model, is not installed."""
    for name in ("lm_eval", "accelerate"):
        packages.require(name)
    import lm_eval

    return lm_eval.__version__


class Harness:
    """lm-eval with its tasks looked up and their data at hand."""

    def __init__(self, asking: Asking) -> None:
        """Find every task and its data, so that what is missing is told before a model is merged.

        Raises:
            ConfigError: lm-eval is absent, a task is unknown or runs code without leave, or data cannot be had.
        """
        self.version = require()
        if asking.include_path is not None and not asking.include_path.is_dir():
            raise ConfigError(f"--include-path {asking.include_path} is no directory: name one with task files (.yaml)")
        self.asking = asking
        self._tasks = _index(asking)
        for column in asking.columns:
            self._check(column.task)

    def _check(self, name: str) -> None:
        if name not in self._tasks.all_tasks:
            raise ConfigError(
                f"--tasks {name}: lm-eval {self.version} has no task of that name, and --include-path adds none"
                f"{did_you_mean(name, self._tasks.all_tasks)}"
            )
        entry = self._tasks.task_index[name]
        if entry.kind.name == "TAG":
            raise ConfigError(
                f"--tasks {name} is a tag, which has no score of its own: name its tasks, "
                f"{','.join(sorted(entry.tags))}"
            )
        if (entry.cfg or {}).get("unsafe_code"):
            self._refuse_code(name)  # before its file is loaded: that runs code already
        with _told(f"task {name} cannot be loaded"):
            loaded = self._tasks.load([name])["tasks"]
        for task in loaded.values():
            if getattr(task, "UNSAFE_CODE", False):
                self._refuse_code(name)

    def _refuse_code(self, name: str) -> None:
        if not self.asking.run_code:
            raise ConfigError(
                f"task {name} runs code that the model wrote, on this machine and as you: give {RUN_CODE} where that "
                "is safe, or leave the task out of --tasks"
            )

    def scores(self, directory: Path) -> dict[str, Score]:
        """Task -> what the model in a Hugging Face directory scores.

        Raises:
            ConfigError: there is no model that transformers can load, or a task does not fit it.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        asking = self.asking
        with _told(f"{directory} cannot be loaded as a Hugging Face model"):
            model = HFLM(
                pretrained=str(directory),
                dtype=DTYPES[asking.dtype],
                device=asking.device,
                batch_size=asking.batch_size,
            )
        found: dict[str, Score] = {}
        for shots in dict.fromkeys(column.shots for column in asking.columns):
            alike = [column for column in asking.columns if column.shots == shots]
            names = [column.task for column in alike]
            with _told(f"{', '.join(names)} cannot be evaluated"):
                results = simple_evaluate(
                    model=model,
                    tasks=names,
                    num_fewshot=shots,
                    batch_size=asking.batch_size,
                    device=asking.device,
                    limit=asking.limit,
                    task_manager=self._tasks,
                    log_samples=False,
                    confirm_run_unsafe_code=asking.run_code,
                )
            found |= {column.task: _score(column, results) for column in alike}
        return {column.task: found[column.task] for column in asking.columns}


def _score(column: Column, results: Mapping[str, Any]) -> Score:
    """One task out of lm-eval's results. ConfigError where it has not the metric that the paper's table has."""
    name = column.task
    row = {**results["results"], **results.get("groups", {})}.get(name)
    if row is None:
        raise ConfigError(f"--tasks {name} is a group that has no score of its own: name its tasks instead")
    values = {key: float(value) for key, value in row.items() if "," in key and isinstance(value, int | float)}
    metrics = {key: value for key, value in values.items() if "_stderr," not in key}
    wanted = [key for key in metrics if key.partition(",")[0] == (column.metric or "acc_norm")]
    if not wanted and (column.metric is not None or not metrics):
        raise ConfigError(
            f"task {name} has no metric {column.metric or 'of numbers'}, which the paper's table shows; it has: "
            f"{', '.join(metrics) or 'none'}"
        )
    key = (wanted or list(metrics))[0]
    subtasks = results.get("group_subtasks", {})
    return Score(
        metric=key,
        value=metrics[key],
        stderr=values.get(key.replace(",", "_stderr,", 1)),
        shots=results["n-shot"].get(name, column.shots or 0),
        samples=sum(results["n-samples"][leaf]["effective"] for leaf in _leaves(name, subtasks)),
        version=str(results["versions"].get(name)),
        metrics=metrics,
    )


def _leaves(name: str, subtasks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The tasks of a group, through groups within it; a task itself."""
    if name not in subtasks:
        yield name
    for child in subtasks.get(name, ()):
        yield from _leaves(child, subtasks)


def _index(asking: Asking) -> Any:  # noqa: ANN401
    """lm-eval's `TaskManager`.

    Where all tasks are the user's own, lm-eval's 14,000 files are not read, which takes seconds.
    """
    from lm_eval.tasks import TaskManager

    if asking.include_path is None:
        return TaskManager()
    own = TaskManager(include_path=str(asking.include_path), include_defaults=False)
    if all(_has(own.task_index, column.task) for column in asking.columns):
        return own
    return TaskManager(include_path=str(asking.include_path))


def _has(index: Mapping[str, Any], name: str) -> bool:
    """Whether an index has a task, and of a group all that is in it."""
    if name not in index or index[name].kind.name != "GROUP":
        return name in index
    return all(_has(index, child) for child in index[name].cfg["task"] if isinstance(child, str))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what a task file, a dataset, a model directory or a task on a model can fail with into one message.

    They come through five libraries (lm-eval, datasets, huggingface_hub, transformers, safetensors), each with
    exceptions of its own and none with a base that the others share.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        print(file=sys.stderr)  # ends the line of a progress bar
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(f"{what}: {said[:400]}{_remedy(said)}") from error


def _remedy(said: str) -> str:
    """What helps where there is no network."""
    if "on the Hub" not in said and "Hugging Face Hub" not in said:
        return ""
    return (
        "; without a network, fetch it elsewhere first (HF_HOME names the cache that is copied), or give "
        "--include-path with a task file of the same name and local data"
    )
