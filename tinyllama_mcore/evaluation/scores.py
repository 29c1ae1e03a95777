"""The file of scores: JSON lines, one for what was found out about a model, added to by each run of the tool.

A line is an event in the form of a metrics file (`config.metrics_lines`): "iteration" first, then "event" and "time".
Models are known by identity, so an iteration that a rolled-back run wrote again is evaluated again, and what stands in
the file last is what holds. Neighbours: `harness` finds scores, `figure` draws them over tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllama_mcore.config import atomic
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.metrics_lines import LINE_START
from tinyllama_mcore.config.paths import unwritable_file
from tinyllama_mcore.evaluation.harness import Score
from tinyllama_mcore.evaluation.models import Model

EVENT = "evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What is known of one model."""

    name: str
    identity: str
    iteration: int | None
    tokens: int | None
    run: str
    """The directory that it lies in."""
    scores: Mapping[str, Score]
    """Task -> score."""


@dataclass(kw_only=True)
class ScoreFile:
    """All that is known, in memory and, where a path is given, on the disk."""

    path: Path | None
    settings: Mapping[str, Any]
    """What all lines of a file have in common: the dtype, and how many questions of a task are asked."""
    lines: list[Evaluated] = field(default_factory=list)

    def of(self, identity: str) -> Mapping[str, Score]:
        """Task -> the newest score of a model; empty where there is none."""
        return {task: score for line in self.lines if line.identity == identity for task, score in line.scores.items()}

    def curve(self, run: Path) -> list[Evaluated]:
        """The checkpoints of a run in order, removed ones too; of an iteration written twice, the newest."""
        mine = [line for line in self.lines if line.tokens is not None and line.run == str(run.resolve())]
        newest = {line.iteration: line for line in mine}
        return [evaluated(self, line) for _, line in sorted(newest.items(), key=lambda item: item[0] or 0)]

    def add(self, model: Model, scores: Mapping[str, Score], *, version: str, seconds: float) -> None:
        """Remember what was found, and write it at once.

        Args:
            model: whose.
            scores: task -> score.
            version: of lm-eval.
            seconds: wall seconds that merging and evaluating took.
        """
        line = {
            "iteration": model.iteration,
            "event": EVENT,
            "time": time.time(),
            "consumed_tokens": model.tokens,
            "model": model.name,
            "run": str(model.directory.resolve().parent),
            "identity": model.identity,
            "settings": dict(self.settings),
            "lm_eval": version,
            "seconds": seconds,
            "scores": {task: score.to_plain() for task, score in scores.items()},
        }
        self.lines.append(_evaluated(line))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def evaluated(file: ScoreFile, model: Model | Evaluated) -> Evaluated:
    """All that a file knows of a model."""
    run = model.run if isinstance(model, Evaluated) else str(model.directory.resolve().parent)
    return Evaluated(
        name=model.name,
        identity=model.identity,
        iteration=model.iteration,
        tokens=model.tokens,
        run=run,
        scores=file.of(model.identity),
    )


def opened(path: Path | None, settings: Mapping[str, Any]) -> ScoreFile:
    """What a file holds, ready to be added to; None: nothing is kept. A last line that was cut short is removed.

    Raises:
        ConfigError: it cannot be written, holds something else, or scores of other settings.
    """
    file = ScoreFile(path=path, settings=settings)
    if path is None:
        return file
    if problem := unwritable_file(path):
        raise ConfigError(f"--output {path}: cannot be written ({problem}); name a writable file")
    path.parent.mkdir(parents=True, exist_ok=True)
    *whole, rest = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    for number, text in enumerate(whole, 1):
        file.lines.append(_read(path, number, text, settings))
    if rest:
        if not rest.startswith(LINE_START.decode()[: len(rest)]):
            raise ConfigError(_FOREIGN.format(path=path, number=len(whole) + 1))
        atomic.write_text(path, "".join(f"{text}\n" for text in whole))
    return file


_FOREIGN = "--output {path} holds something else than scores, in line {number:,}: name a new file"


def _read(path: Path, number: int, text: str, settings: Mapping[str, Any]) -> Evaluated:
    """One line. ConfigError where it is no line of ours, or was made with other settings."""
    try:
        line = json.loads(text)
        if line["event"] != EVENT:
            raise ValueError(line["event"])
        found, said = _evaluated(line), line["settings"]
        differing = [key for key, value in settings.items() if said[key] != value]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(_FOREIGN.format(path=path, number=number)) from error
    for key in differing:
        raise ConfigError(
            f"--output {path} holds scores with {key} {said[key]}, and {settings[key]} is asked for: they would not "
            "compare; name a new file"
        )
    return found


def _evaluated(line: Mapping[str, Any]) -> Evaluated:
    return Evaluated(
        name=line["model"],
        identity=line["identity"],
        iteration=line["iteration"],
        tokens=line["consumed_tokens"],
        run=line["run"],
        scores={task: Score(**score) for task, score in line["scores"].items()},
    )


def missing(file: ScoreFile, model: Model, tasks: Sequence[str]) -> list[str]:
    """The tasks that a file knows no score of for a model."""
    known = file.of(model.identity)
    return [task for task in tasks if task not in known]
