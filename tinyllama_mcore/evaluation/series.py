"""Models evaluated one after another: those that are there, or also those that a running job still saves.

A job is watched from outside: its checkpoints are listed again and again, and merged ones are copies, so nothing that
the job does waits for this. Neighbours: `models` reads, `harness` asks, `scores` keeps, `figure` draws.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tinyllama_mcore.checkpoint.manifest import Damaged
from tinyllama_mcore.evaluation import figure, scores
from tinyllama_mcore.evaluation.harness import Harness
from tinyllama_mcore.evaluation.models import Gone, Merging, Model, listed, merged
from tinyllama_mcore.evaluation.scores import Evaluated, ScoreFile

POLL_S = 2.0
"""Seconds between two looks at a directory that is watched."""


@dataclass(kw_only=True)
class Series:
    """The work, and how far it has come."""

    harness: Harness
    merging: Merging
    file: ScoreFile
    again: bool = False
    """Evaluate models whose scores are known, too."""
    picture: Path | None = None
    done: list[Evaluated] = field(default_factory=list)
    """Models with scores, in the order of evaluation."""
    damaged: int = 0
    """Checkpoints that could not be merged because they are not what was saved."""
    _seen: set[str] = field(default_factory=set)
    """Identities of models that are dealt with, one way or another."""

    def all(self, wanted: list[Model]) -> None:
        """Evaluate models; of a damaged one, and of one that goes away meanwhile, a line says so."""
        for model in wanted:
            self._seen.add(model.identity)
            try:
                self.one(model)
            except Gone as gone:
                print(f"skipped      {gone}: nothing is known of it", file=sys.stderr, flush=True)
            except Damaged as damage:
                print(f"skipped      {damage}", file=sys.stderr, flush=True)
                self.damaged += 1
        self._draw(wanted)

    def watch(self, directory: Path) -> None:
        """Evaluate each checkpoint of a run as it is saved, until the run's last iteration is.

        What comes while another is evaluated waits; what the run removes meanwhile is never seen.
        """
        print(f"watching     {directory} until the run's last checkpoint; Ctrl-C ends this earlier", flush=True)
        while True:
            there = listed(directory)
            new = [model for model in there if model.identity not in self._seen]
            if new:
                self.all(new[:1])
            elif there and (there[-1].iteration or 0) >= max(model.train_iters for model in there) > 0:
                return
            else:
                time.sleep(POLL_S)

    def one(self, model: Model) -> None:
        """Evaluate one model, unless all its scores are in the file. See `models.merged` for what it raises."""
        tasks = [column.task for column in self.harness.asking.columns]
        if self.again or scores.missing(self.file, model, tasks):
            self._evaluate(model)
        else:
            print(f"known        {model.name}: its scores are in {self.file.path}", flush=True)
        self.done.append(scores.evaluated(self.file, model))

    def _evaluate(self, model: Model) -> None:
        told = "" if model.tokens is None else f", {model.tokens:,} tokens"
        print(f"evaluating   {model.name}{told}", flush=True)
        start = time.monotonic()
        with merged(model, self.merging) as directory:
            found = self.harness.scores(directory)
        seconds = time.monotonic() - start
        self.file.add(model, found, version=self.harness.version, seconds=seconds)
        short = ", ".join(f"{task} {100 * score.value:.2f}" for task, score in found.items())
        print(f"evaluated    {model.name} in {seconds:.0f} s: {short}", flush=True)

    def _draw(self, wanted: list[Model]) -> None:
        """The curve of the run that these checkpoints are of."""
        if self.picture is None or not wanted:
            return
        if points := self.file.curve(wanted[0].directory.parent):
            figure.draw(points, self.harness.asking.columns, self.picture)
